"""Workers that are processes of this machine, each with GPUs of its own where there are any.

A worker reads one message after the other from its pipe. Another pipe tells it when the run is gone, even by SIGKILL, and ends
it in the middle of a chunk.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import cast

from stllava.config.execution import ExecutionOptions
from stllava.errors import StllavaError
from stllava.execution.workforce import ChunkBench, Reply, Worker, WorkerFailure, WorkerStart

PRELOADED = ("stllava.generation.local_sampler", "stllava.experts.distilled_judge")
"""What workers are born with, so that a new one is there at once."""
END_SECONDS = 10.0
VISIBLE = "CUDA_VISIBLE_DEVICES"


class ProcessCrew:
    """Starts processes."""

    def __init__(self, options: ExecutionOptions) -> None:
        """Share out this machine's GPUs; refuse more workers than they suffice for."""
        from stllava.model.device import visible_gpus

        gpus, each = visible_gpus(), int(options.gpus_per_worker)
        if gpus and each * options.workers > len(gpus):
            raise StllavaError(
                f"execution.workers {options.workers} with {each} GPU each, and this machine shows {len(gpus)}",
                expected="GPUs for every worker",
                remedy=f"Set execution.workers to {len(gpus) // each}.",
            )
        self._gpus = [gpus[place * each : (place + 1) * each] for place in range(options.workers)] if gpus else []
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOADED])

    def hire(self, place: int) -> Worker:
        """Start a process."""
        ours, theirs = self._context.Pipe()
        ending, held = self._context.Pipe(duplex=False)
        gpus = ",".join(self._gpus[place]) if self._gpus else None
        given = (theirs, ending, gpus)
        process = self._context.Process(target=_serve, args=given, name=f"stllava-worker-{place}", daemon=True)
        process.start()
        theirs.close()
        ending.close()
        return ProcessWorker(process, ours, held)

    def wait(self, workers: Sequence[Worker]) -> list[Worker]:
        """Those of the workers that have something to say, or died; at least one."""
        processes = cast(Sequence[ProcessWorker], workers)
        ready = wait([worker.line for worker in processes])
        return [worker for worker in processes if worker.line in ready]

    def close(self) -> None:
        """Nothing is left once the workers are dismissed."""


class ProcessWorker:
    """A process that works on chunks."""

    def __init__(self, process: ForkServerProcess, line: Connection, held: Connection) -> None:
        """Speak to a process by `line`; it ends when `held` is closed, whatever it is at."""
        self.process, self.line, self._held = process, line, held
        self._key = ""

    def greet(self) -> None:
        """Let it say that it is there; where it has died, its reply says so."""
        self._tell("greet")

    def give(self, key: str, work: bytes, chunk: bytes) -> bool:
        """Let it work on a chunk; a work is sent once. False where it has died."""
        if key != self._key and not self._tell("open", key, work):
            return False
        self._key = key
        return self._tell("run", chunk)

    def _tell(self, *message: object) -> bool:
        """Send a message; False where it has died."""
        try:
            self.line.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def reply(self) -> Reply:
        """What it has to say."""
        try:
            reply: Reply = self.line.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(END_SECONDS)
            return WorkerFailure(_ending(self.process.exitcode))
        return reply

    def rest(self) -> None:
        """Let it drop what it holds; where it has died, whoever greets it is told."""
        self._key = ""
        self._tell("close")

    def dismiss(self) -> None:
        """End it at once."""
        self.line.close()
        self._held.close()
        self.process.kill()
        self.process.join()


def _ending(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is None:
        return "it does not answer any more"
    return f"killed by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"it ended with exit code {exitcode}"


def _end_with(ending: Connection) -> None:
    """End this process, in the middle of whatever it does, once nobody holds the pipe's other end."""
    wait([ending])
    os._exit(1)


def _serve(line: Connection, ending: Connection, gpus: str | None) -> None:
    """A worker's life: messages in, replies out, until the pipe is closed."""
    threading.Thread(target=_end_with, args=(ending,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if gpus is not None:
        os.environ[VISIBLE] = gpus
    bench = ChunkBench()
    try:
        line.send(WorkerStart())
        while True:
            match line.recv():
                case ("open", key, work):
                    bench.take_up(key, work)
                case ("run", chunk):
                    line.send(bench.run(chunk))
                case ("greet",):
                    line.send(WorkerStart())
                case _:
                    bench.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # The run has ended, or was killed.
