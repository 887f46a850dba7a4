"""Hands chunks to workers that may die: a dead one loses its chunk only, and a chunk that three died of is set aside.

A worker is a process or an actor with a `ChunkBench`: it holds one `ChunkWork` (a policy, that is) and does chunk after chunk
with it. How it is started and spoken to is a `Crew`'s to know.
"""

import logging
import pickle
import sys
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Any, Protocol, TypeVar, cast

from stllava.errors import StllavaError
from stllava.records import Record
from stllava.store import ChunkWork, FinishedChunk, Named, finished_chunk

logger = logging.getLogger(__name__)
N = TypeVar("N", bound=Named)
O = TypeVar("O", bound=Record)  # noqa: E741

LOSSES = 3
"""Workers that a chunk may cost before it is set aside, and starts in a row that may fail."""
TOLD = 2000
"""Characters at the end of a traceback that are told."""


@dataclass(frozen=True)
class WorkerStart:
    """A worker has started, and waits for its first chunk."""


@dataclass(frozen=True)
class WorkerFailure:
    """A worker died, or what it did ended in an error that is no user's."""

    detail: str
    """What is known of it."""


@dataclass(frozen=True)
class UserError:
    """The work ended in an error that the user can put right."""

    error: StllavaError


Reply = WorkerStart | WorkerFailure | UserError | FinishedChunk[Any]


class Worker(Protocol):
    """A process or actor, of which one thing at a time is asked."""

    def greet(self) -> None:
        """Let it say anew that it has started; one that died since says that."""

    def give(self, key: str, work: bytes, chunk: bytes) -> bool:
        """Let it work on a chunk; `key` tells one work from another, and each is sent once.

        False where it is known not to be there any more, so that it never had the chunk.
        """

    def reply(self) -> Reply:
        """What it has to say, once `Crew.wait` named it."""

    def rest(self) -> None:
        """Let it drop what it holds, until it is given a chunk again."""

    def dismiss(self) -> None:
        """End it at once."""


class Crew(Protocol):
    """Starts workers of one kind."""

    def hire(self, place: int) -> Worker:
        """Start the worker of a place, from 0; it says when it is ready."""

    def wait(self, workers: Sequence[Worker]) -> list[Worker]:
        """Those of the workers that have something to say, or died; at least one."""

    def close(self) -> None:
        """End what was begun for all workers."""


class ChunkBench:
    """What a worker has before it: one work at a time, opened once."""

    def __init__(self) -> None:
        self._key = ""
        self._work: ChunkWork[Any, Any] | None = None
        self._fault = ""

    def has(self, key: str) -> bool:
        """Whether it holds that work."""
        return self._work is not None and self._key == key

    def take_up(self, key: str, work: bytes) -> None:
        """Take a work up, and drop the one before."""
        self.close()
        self._key, self._work = key, pickle.loads(work)

    def close(self) -> None:
        """Drop the work and what it holds."""
        if self._work is not None:
            self._work.close()
        self._work = None
        release_memory()

    def run(self, chunk: bytes) -> Reply:
        """What comes of a chunk."""
        try:
            if self._work is None:
                return WorkerFailure(self._fault or "a chunk came before its work")
            return finished_chunk(self._work, pickle.loads(chunk))
        except StllavaError as error:
            return UserError(error)
        except Exception:  # noqa: BLE001  (whatever it is, it is told, and the chunk is tried again by another worker)
            return WorkerFailure(traceback.format_exc()[-TOLD:])


def release_memory() -> None:
    """Give back the memory of an accelerator that nothing holds any more; work that loaded no torch holds none."""
    if "torch" in sys.modules:
        from stllava.model.device import empty_cache

        empty_cache()


class Workforce:
    """An executor (`store.Executor`) of several workers, which stay between the stages of a run."""

    def __init__(self, crew: Crew, *, workers: int) -> None:
        """Hire up to so many workers, and no more than there are chunks for."""
        self._crew, self._places = crew, workers
        self._workers: dict[int, Worker] = {}
        self._failed_starts = 0

    def map(
        self, work: ChunkWork[N, O], chunks: Iterable[tuple[int, Sequence[N]]], *, record_type: type[O]
    ) -> Iterator[tuple[int, FinishedChunk[O]]]:
        """What comes of every chunk with its index, as soon as it is there."""
        pickled = pickle.dumps(work)
        key = sha256(pickled).hexdigest()
        waiting, tasks = iter(chunks), deque[tuple[int, Sequence[N]]]()
        busy: dict[int, tuple[int, Sequence[N]] | None] = {}
        losses: Counter[int] = Counter()

        def holds(count: int) -> bool:
            """Whether so many chunks are to be done that nobody is at; they are read as they are needed."""
            tasks.extend(islice(waiting, max(0, count - len(tasks))))
            return len(tasks) >= count

        try:
            # A chunk must cost nobody who died before.
            greeted = set(self._workers) if holds(1) else set()
            for place in greeted:
                self._workers[place].greet()
                busy[place] = None
            while True:
                for place in sorted(self._workers.keys() - busy.keys()):
                    if holds(1) and self._workers[place].give(key, pickled, pickle.dumps(tasks[0][1])):
                        busy[place] = tasks.popleft()
                    elif tasks:
                        self._workers.pop(place).dismiss()
                for place in range(self._places):
                    if not holds(1 + sum(task is None for task in busy.values())):
                        break
                    if place not in self._workers:
                        self._workers[place] = self._crew.hire(place)
                        busy[place] = None
                if not tasks and not any(task is not None for task in busy.values()):
                    return  # Whoever has not started yet is not needed any more.
                for place, reply in self._replies(busy):
                    task = busy.pop(place)
                    if isinstance(reply, UserError):
                        raise reply.error
                    if isinstance(reply, WorkerFailure):
                        self._workers.pop(place).dismiss()
                        if place in greeted:
                            logger.warning("A worker was lost while it had nothing to do (%s).", reply.detail)
                        elif task is None:
                            self._count_failed_start(reply)
                        elif (done := self._lost(work, task, reply, losses)) is None:
                            tasks.append(task)
                        else:
                            yield task[0], done
                    elif isinstance(reply, WorkerStart):
                        self._failed_starts = 0
                    elif task is not None:
                        yield task[0], cast(FinishedChunk[O], reply)
                    greeted.discard(place)
        finally:
            for place in busy:  # What they are at is of no use to anyone.
                self._workers.pop(place).dismiss()
            for worker in self._workers.values():
                worker.rest()

    def _replies(self, busy: Iterable[int]) -> Iterator[tuple[int, Reply]]:
        """What workers have to say, at least one of them, by their places."""
        places = {id(self._workers[place]): place for place in busy}
        for worker in self._crew.wait([self._workers[place] for place in busy]):
            yield places[id(worker)], worker.reply()

    def _count_failed_start(self, reply: WorkerFailure) -> None:
        """End the work where workers cannot even start."""
        self._failed_starts += 1
        if self._failed_starts >= LOSSES:
            raise StllavaError(
                f"{LOSSES} workers in a row ended before they began: {reply.detail}",
                expected="workers that start",
                remedy="Correct what that names, or leave execution out.",
            )

    def _lost(
        self, work: ChunkWork[N, O], task: tuple[int, Sequence[N]], reply: WorkerFailure, losses: Counter[int]
    ) -> FinishedChunk[O] | None:
        """What is kept of a chunk once it cost too many workers; None before."""
        index, chunk = task
        losses[index] += 1
        last, items = reply.detail.strip().rsplit("\n", 1)[-1], f"{len(chunk)} items, the first of them {chunk[0].id}"
        if losses[index] < LOSSES:
            logger.warning(
                "A worker was lost with %d items from %r on (%s); they are done again.", len(chunk), chunk[0].id, last
            )
            return None
        logger.warning(
            "%d items from %r on cost %d workers and are set aside: %s", len(chunk), chunk[0].id, LOSSES, reply.detail
        )
        records, dropped = work.set_aside(chunk, f"{items}: {last}")
        note = f"{len(chunk)} items were set aside because {LOSSES} workers were lost with them, the last of them so: {last}"
        return FinishedChunk(list(records), dropped, (note,))

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.dismiss()
        self._workers.clear()
        self._crew.close()
