"""Workers that are actors of a Ray cluster; their results come back through Ray, and policies and images are read from paths.

Every machine needs stllava, and the run's folder and images under the same paths.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast

from stllava.config.execution import ExecutionOptions
from stllava.errors import StllavaError
from stllava.execution.workforce import ChunkBench, Reply, Worker, WorkerFailure, WorkerStart


class RayCrew:
    """Starts actors."""

    def __init__(self, options: ExecutionOptions) -> None:
        """Join the cluster of the options, or start one here."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would report usage to its makers.
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise StllavaError(
                "execution.kind is ray, which is not installed", expected="the extra `ray`", remedy="pip install 'stllava[ray]'"
            ) from None
        self._ray: Any = ray
        here = {"num_cpus": options.workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        try:
            ray.init(
                address=options.address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                **({} if options.address else here),
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise StllavaError(
                f"no Ray cluster at {options.address or 'this machine'}: {error}",
                expected="a cluster that can be joined",
                remedy="Check execution.address; `ray status` tells whether it is up.",
            ) from error
        # On a cluster without GPUs an actor that asks for one would wait for ever.
        gpus = options.gpus_per_worker if ray.cluster_resources().get("GPU", 0) else 0
        self._actor = ray.remote(ChunkBench).options(num_cpus=1, num_gpus=gpus, max_restarts=0)

    def hire(self, place: int) -> Worker:
        """Start an actor; it waits until the cluster has room for it."""
        return RayWorker(self._ray, self._actor.remote())

    def wait(self, workers: Sequence[Worker]) -> list[Worker]:
        """Those of the workers that have something to say, or died; at least one."""
        actors = cast(Sequence[RayWorker], workers)
        ready, _ = self._ray.wait([actor.asked for actor in actors], num_returns=1)
        return [actor for actor in actors if actor.asked in ready]

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()


class RayWorker:
    """An actor that works on chunks."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._key = ""
        self.greet()

    def greet(self) -> None:
        """Let it say that it is there."""
        self._works = False
        self.asked: Any = self._actor.has.remote("")

    def give(self, key: str, work: bytes, chunk: bytes) -> bool:
        """Let it work on a chunk; a work is sent once. Whether it is there is known by its reply."""
        if key != self._key:
            self._actor.take_up.remote(key, work)
            self._key = key
        self._works = True
        self.asked = self._actor.run.remote(chunk)
        return True

    def reply(self) -> Reply:
        """What it has to say."""
        try:
            said = self._ray.get(self.asked)
        except self._ray.exceptions.RayError as error:
            return WorkerFailure(" ".join(str(error).split()))
        return cast(Reply, said) if self._works else WorkerStart()

    def rest(self) -> None:
        """Let it drop what it holds."""
        self._key = ""
        self._actor.close.remote()

    def dismiss(self) -> None:
        """End it at once."""
        self._ray.kill(self._actor)
