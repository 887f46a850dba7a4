"""vLLM servers that stllava starts, looks after and ends: one a GPU, on this machine's loopback, for a policy or an expert.

Each runs in an environment of its own (`endpoint.python`, `judge.chat.python`), kept by `server_keeper.py`, so that it ends
when we do, however we end. Nothing of what a server writes is read but the last lines of its log, when it fails.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock

from stllava.config import ServeOptions
from stllava.errors import StllavaError
from stllava.generation import server_keeper
from stllava.model.device import visible_gpus
from stllava.remote.address import reach
from stllava.remote.audit import Audit
from stllava.remote.client import Client, NoReplyError
from stllava.remote.concurrency import for_each
from stllava.remote.rate_limiter import RateLimiter
from stllava.remote.server_pool import PoolMember, ServerPool
from stllava.text import printable

logger = logging.getLogger(__name__)
MODULE = "vllm.entrypoints.openai.api_server"
STARTS = 3
"""Starts in a row that may fail before a server is given up."""
LOOK_SECONDS = 0.25
"""Between two looks whether a server is ready."""
END_SECONDS = 15.0
LOG_CHARACTERS = 1500
"""Of the end of a server's log, in an error."""
NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME")
"""What is of this environment, and not of the server's."""
GIVEN: Mapping[str, str] = {
    "generation-config": "vllm",
    "chat-template-content-format": "openai",
    "mm-processor-kwargs": '{"backend": "pil"}',
    "enable-prefix-caching": "",
}
"""Flags that every server needs (docs/serving.md); an empty value is a flag that stands alone."""


class VllmServer:
    """One server process of a model."""

    def __init__(self, options: ServeOptions, weights: Path | str, *, gpu: str | None, logs: Path) -> None:
        """Serve `weights` on the GPU of that name; its output goes into the folder `logs`."""
        self._options, self._weights, self._gpu = options, weights, gpu
        self._log = logs / f"server-{gpu or id(self)}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()
        self.port = 0
        """Where it listens on the loopback; it stays there when it is started again."""

    def start(self) -> None:
        """Start it and wait until it is ready; one that ends before is started again, on another port."""
        python, part = self._options.python, self._options.part
        if python is not None and shutil.which(python) is None:
            raise StllavaError(
                f"{part}.python {python} is no program that can be run",
                expected="the Python of an environment in which vLLM is installed",
                remedy=f"Correct {part}.python.",
            )
        with self._lock:
            for attempt in range(STARTS):
                self._end()
                self.port = self.port if self.port and not attempt else free_port()
                self._launch()
                if self._is_ready():
                    return
                logger.warning("A server of %s ended before it was ready: %s", self._weights, self._last_words()[-300:])
            raise StllavaError(
                f"the server of {self._weights} ended {STARTS} times before it was ready: {self._last_words()}",
                expected="a server that starts",
                remedy=f"Correct what its log says ({part}.arguments, {part}.python), then give the same command again.",
            )

    def _launch(self) -> None:
        """Start the process."""
        options = self._options
        python = str(options.python) if options.python is not None else sys.executable
        given = {**GIVEN, **{name.replace("_", "-"): value for name, value in options.arguments.items()}}
        flags = [word for name, value in given.items() for word in _flag(name, value)]
        own = [
            "--model",
            str(self._weights),
            "--served-model-name",
            options.model,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}
        for name in NOT_PASSED_ON:
            environment.pop(name, None)
        if self._gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpu
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, server_keeper.__file__, python, "-m", MODULE, *own, *flags],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def _is_ready(self) -> bool:
        """Wait until it answers; False where its process ends before."""
        deadline = time.monotonic() + self._options.start_seconds
        with Client(reach(self.options, purpose="they are shown to the model"), self.options) as client:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    return False
                try:
                    client.get("/models", seconds=5.0, retries=0)
                except NoReplyError:
                    time.sleep(LOOK_SECONDS)
                else:
                    # Another server may have taken the port, and answers while ours ends.
                    time.sleep(LOOK_SECONDS)
                    return self._process.poll() is None
        self._end()
        raise StllavaError(
            f"the server of {self._weights} was not ready within {self._options.start_seconds:g} s: {self._last_words()}",
            expected="a server that answers",
            remedy=f"Raise {self._options.part}.start_seconds, or correct what its log says.",
        )

    @property
    def options(self) -> ServeOptions:
        """How it is spoken to."""
        return self._options.model_copy(update={"url": f"http://127.0.0.1:{self.port}/v1", "send_images": False})

    def end(self) -> None:
        """End it and all of its processes."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _last_words(self) -> str:
        """The end of its log."""
        text = self._log.read_bytes()[-LOG_CHARACTERS:].decode(errors="replace") if self._log.is_file() else ""
        return printable(" ".join(text.split())) or "it wrote nothing"


class ModelServers:
    """All servers of a model, and the pool that speaks to them. Close it, or use it as a context manager."""

    def __init__(
        self, options: ServeOptions, weights: Path | str, *, audit: Path | None, limiter: RateLimiter | None = None
    ) -> None:
        """Start one on each GPU, or `replicas` of them where there is none; images that they are shown are noted in `audit`."""
        gpus = visible_gpus()
        if gpus and options.replicas > len(gpus):
            raise StllavaError(
                f"{options.part}.replicas {options.replicas}, and this machine shows {len(gpus)} GPUs",
                expected="a GPU for each server",
                remedy=f"Set {options.part}.replicas to {len(gpus)}, or share weights out by {options.part}.arguments.",
            )
        self._logs = tempfile.TemporaryDirectory(prefix="stllava-servers-")
        places: Sequence[str | None] = gpus[: options.replicas] if gpus else [None] * options.replicas
        self._servers = [VllmServer(options, weights, gpu=gpu, logs=Path(self._logs.name)) for gpu in places]
        self._audit, self._limiter = Audit(audit) if audit is not None else None, limiter
        self.pool: ServerPool | None = None
        try:
            for_each(self._servers, lambda server, _: server.start(), workers=len(self._servers), name="start")
        except BaseException:
            self.close()
            raise
        self.pool = ServerPool([self._member(server) for server in self._servers], options, patience=options.start_seconds)

    def __enter__(self) -> "ModelServers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _member(self, server: VllmServer) -> PoolMember:
        address = reach(server.options, purpose="they are shown to the model")
        return PoolMember(
            Client(address, server.options, audit=self._audit, shares_audit=True, limiter=self._limiter), revive=server.start
        )

    def restart(self) -> None:
        """Start every server anew, which gives back what it has taken of memory; nothing may be under way."""
        for_each(self._servers, lambda server, _: server.start(), workers=len(self._servers), name="start")

    def close(self) -> None:
        """End all servers, and the connections to them."""
        if self.pool is not None:
            self.pool.close()
        for server in self._servers:
            server.end()
        if self._audit is not None:
            self._audit.close()
        self._logs.cleanup()


def _flag(name: str, value: object) -> list[str]:
    """A flag of a server as words."""
    if value is False or value is None:
        return []
    return [f"--{name}"] if value is True or value == "" else [f"--{name}", str(value)]


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
