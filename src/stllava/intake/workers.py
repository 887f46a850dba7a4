"""Works through files in processes of their own, so that a file that hangs, crashes or eats memory is named, and only it lost.

Writes nothing, and reads only how long its workers have run. A worker says when it begins a file and sends what it makes of
it piece by piece; where nothing comes in time it is killed, and a fresh one goes on behind that file. Time is the worker's own
on a core, so that a busy machine loses no files; one that sleeps or waits for a disk is given `PATIENCE` times as long, and
that it waits for a core counts as neither. Whoever listens is told of each piece as it
comes, and asked in between how long to wait. A job of several files says at which of them
it is; when one is lost the job is begun again without it. Workers' output is closed: what C libraries print of a damaged
file may hold a name.

`pebble`, whose pool also kills a task that takes too long and replaces its process, is not used: its limit is of the wall clock
and of a whole task, a result comes when the task has ended, so that pieces, notes and heartbeats would need a channel
of their own, and it sets no limit of memory. Left to it would be some 40 lines of what is here.
"""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

from stllava.errors import StllavaError

START_SECONDS = 120.0
STARTS = 3
PRELOADED = ("stllava.intake.convert", "pydicom.pixels", "nibabel", "tifffile")
"""What workers are born with; of the libraries only those that are installed. Else its first file would pay for each."""
PATIENCE = 3
"""How many times its limit a worker may take that does not run, but for the time in which it waits for a core."""
LEAST_REST = 0.02
"""Seconds between two looks at a worker that runs."""
SLOW_BYTES = 16 << 20
"""A file may take a second more for every so many bytes."""


@dataclass(frozen=True)
class Job:
    """One file to work on, or the files of one stack that become one picture."""

    number: int
    """Its place among all files."""
    path: Path
    """Where it is."""
    size: int
    """In bytes."""
    stack_index: int | None = None
    """Where in a stack it lies, from 0; None of a file by itself."""
    stack: "tuple[Job, ...]" = ()
    """All files that become one picture, in their order in it, this one among them; empty of a job of one file."""
    lost: frozenset[int] = frozenset()
    """Numbers of the stack's files that are no longer tried."""

    notes: tuple[str, ...] = ()
    """What `Note`s said of it before the work was killed."""

    def tried(self) -> "tuple[Job, ...]":
        """The files that are worked on."""
        return tuple(file for file in self.stack if file.number not in self.lost) if self.stack else (self,)


@dataclass(frozen=True)
class Heartbeat:
    """What a worker says as it goes on within a job of several files."""

    numbers: tuple[int, ...]
    """The one file that it now reads, or all those that it now makes the picture of."""
    size: int
    """Of them together, in bytes."""
    seconds: float = 0.0
    """What the next piece may take beyond the usual."""


@dataclass(frozen=True)
class WorkerLoss:
    """What a worker did not live to say."""

    number: int
    """Of the file it was at."""
    cause: str
    """`too-slow` or `crashed`."""
    detail: str
    """What is known of it."""


@dataclass(frozen=True)
class Note:
    """What a worker found out that need not be found out again, should the work be killed before its file is done."""

    text: str
    """In the words of the work, which is given them back in `Job.notes`."""


Message = str | Heartbeat | Note
_KINDS = {str: "piece", Heartbeat: "heartbeat", Note: "note"}
Work = Callable[[Job], Iterator[Message]]
Piece = str | WorkerLoss


class Listener(Protocol):
    """Who hears of the work while it goes on."""

    def on_message(self, key: int, message: str | Note) -> None:
        """A piece or a note came of the chunk of that key."""

    def tick(self) -> float:
        """Called at least as often as it asks for: the most seconds until it wants to be called again."""


class StoppedError(StllavaError):
    """A user error met in a worker, such as a missing extra: work stops with its words."""

    def __init__(self, text: str) -> None:
        Exception.__init__(self, text)


@dataclass
class _Worker:
    process: ForkServerProcess
    line: Connection
    key: int = -1
    left: list[Job] = field(default_factory=list)
    job: Job | None = None
    heartbeat: Heartbeat = field(default_factory=lambda: Heartbeat((), 0))
    pieces: list[Piece] = field(default_factory=list)
    begun: int = 0
    """Pieces of the jobs before the one it is at."""
    limit: float = START_SECONDS
    """Seconds until the next message."""
    last: "_Times" = field(default_factory=lambda: _Times(0.0, 0.0, 0.0))
    """When the last one came."""
    next_look: float = 0.0
    """When it may be overdue at the earliest, by the clock of `time.monotonic`."""

    def allow(self, seconds: float) -> None:
        """Give it so many seconds from now on."""
        self.limit, self.last = seconds, _times(self.process.pid)
        self.next_look = self.last.wall + seconds

    def is_overdue(self) -> bool:
        """Whether its time is up; when not, `next_look` is moved to when it may be."""
        now = _times(self.process.pid)
        ran, waited, passed = now.ran - self.last.ran, now.waited - self.last.waited, now.wall - self.last.wall
        left = min(self.limit - ran, PATIENCE * self.limit - (passed - waited))
        self.next_look = now.wall + max(left, LEAST_REST)
        return left <= 0


@dataclass(frozen=True)
class _Times:
    """What a process has spent, in seconds."""

    wall: float
    """By the clock of `time.monotonic`."""
    ran: float
    """On a core, its main thread alone, which does the work or waits for those that do."""
    waited: float
    """For a core, while it could have run."""


def _times(pid: int | None) -> _Times:
    """What a process has spent; on systems that do not say, the wall clock is what it ran."""
    wall = time.monotonic()
    try:
        ran, waited, _ = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()
    except OSError:
        # No such system, or the process has just died, which reading from it will say.
        return _Times(wall, wall, 0.0)
    return _Times(wall, int(ran) / 1e9, int(waited) / 1e9)


def work_through(
    chunks: Iterable[tuple[int, list[Job]]],
    setup: Callable[[], Work],
    *,
    workers: int,
    seconds: float,
    memory: int,
    listener: Listener,
) -> Iterator[tuple[int, list[Piece]]]:
    """Every chunk's key with all pieces of its jobs in their order, chunk by chunk as they are done.

    `setup` is called once in each worker and must be picklable; `seconds` is the longest that a worker may run for a piece,
    `memory` the bytes that it may allocate beyond its start. Raises `StoppedError` with the words of a `StllavaError` met at
    work.
    """
    waiting = iter(chunks)
    crew: list[_Worker] = []
    failed_starts = 0
    try:
        while True:
            while len(crew) < workers and (chunk := next(waiting, None)) is not None:
                crew.append(_start(setup, memory, key=chunk[0], jobs=chunk[1], pieces=[]))
            if not crew:
                return
            rest = min(listener.tick(), min(worker.next_look for worker in crew) - time.monotonic())
            ready = wait([worker.line for worker in crew], timeout=max(0.0, rest))
            for i, worker in enumerate(list(crew)):
                loss = _hear(worker, seconds, listener) if worker.line in ready else _overdue(worker)
                if loss is not None:
                    failed_starts = failed_starts + 1 if worker.job is None else 0
                    if failed_starts >= STARTS:
                        raise RuntimeError(f"workers end before they begin: {loss.detail}")
                    _end(worker)
                    jobs, pieces = _remaining(worker, loss)
                    crew[i] = _start(setup, memory, key=worker.key, jobs=jobs, pieces=pieces)
            for worker in list(crew):
                if worker.job is None and not worker.left:
                    yield worker.key, worker.pieces
                    chunk = next(waiting, None)
                    if chunk is None:
                        _end(worker)
                        crew.remove(worker)
                    else:
                        _give(worker, chunk[0], chunk[1], [])
    finally:
        for worker in crew:
            _end(worker)


def _start(setup: Callable[[], Work], memory: int, *, key: int, jobs: list[Job], pieces: list[Piece]) -> _Worker:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, setup, memory), daemon=True)
    process.start()
    theirs.close()
    worker = _Worker(process, ours)
    _give(worker, key, jobs, pieces)
    return worker


def _give(worker: _Worker, key: int, jobs: list[Job], pieces: list[Piece]) -> None:
    worker.key, worker.left, worker.job, worker.pieces = key, list(jobs), None, pieces
    worker.allow(START_SECONDS)
    try:
        worker.line.send(jobs)
    except (BrokenPipeError, ConnectionResetError):
        # It has died; reading from it will say so.
        return


def _hear(worker: _Worker, seconds: float, listener: Listener) -> WorkerLoss | None:
    """Take one message of a worker; what was lost when it has died instead."""
    try:
        kind, piece = worker.line.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join(START_SECONDS)
        return WorkerLoss(-1, "crashed", f"exit code {worker.process.exitcode}")
    if kind == "stop":
        raise StoppedError(piece)
    if kind == "begin":
        worker.job = worker.left.pop(0)
        files = worker.job.tried()
        worker.heartbeat = Heartbeat(tuple(file.number for file in files), sum(file.size for file in files))
        worker.begun = len(worker.pieces)
    elif kind == "heartbeat":
        worker.heartbeat = piece
    elif kind == "note":
        listener.on_message(worker.key, piece)
    elif kind == "piece":
        worker.pieces.append(piece)
        listener.on_message(worker.key, piece)
    else:
        worker.job = None
    more = worker.heartbeat.size / SLOW_BYTES + worker.heartbeat.seconds
    worker.allow(seconds + more if worker.job else START_SECONDS)
    return None


def _overdue(worker: _Worker) -> WorkerLoss | None:
    """Kill a worker whose time is up."""
    if time.monotonic() < worker.next_look or (worker.job is None and not worker.left) or not worker.is_overdue():
        return None
    worker.process.kill()
    worker.process.join()
    return WorkerLoss(-1, "too-slow", "nothing came of it in time")


def _remaining(worker: _Worker, loss: WorkerLoss) -> tuple[list[Job], list[Piece]]:
    """Where a fresh worker goes on after one was lost: behind its file, or with the rest of that file's stack.

    A stack is begun again, so what was said of it is dropped; where all of it was in hand nothing of it is tried again.
    """
    job = worker.job
    if job is None:
        return worker.left, worker.pieces
    named = [replace(loss, number=number) for number in worker.heartbeat.numbers]
    rest = replace(job, lost=job.lost | set(worker.heartbeat.numbers))
    if len(named) == 1 and rest.tried() and job.stack:
        return [rest, *worker.left], [*worker.pieces[: worker.begun], *named]
    return worker.left, [*worker.pieces, *named]


def _end(worker: _Worker) -> None:
    worker.line.close()
    worker.process.kill()
    worker.process.join()


def _serve(line: Connection, setup: Callable[[], Work], memory: int) -> None:
    """A worker's life: jobs in, pieces out, until the line is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    pages = Path("/proc/self/statm")
    if pages.exists():  # Other systems do not keep to a limit of address space.
        held = int(pages.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + memory, resource.RLIM_INFINITY))
    try:
        work = setup()
        while True:
            for job in line.recv():
                line.send(("begin", ""))
                for piece in work(job):
                    line.send((_KINDS[type(piece)], piece))
                line.send(("end", ""))
    except StllavaError as error:
        line.send(("stop", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # The importer has ended, or was killed.
