"""Work on items chunk by chunk, each kept on disk as it is made: what is done is not done again, whoever did it.

Chunks are cut before anything is skipped, so that a stage that was stopped, cut into shards or shared out to workers computes,
and rounds, as one that was not.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from stllava.dropped import LET_PASS, Dropped
from stllava.errors import NothingLeftError, StllavaError
from stllava.progress import Progress
from stllava.records import Keyed, Manifest, Record
from stllava.store.disk import write_whole
from stllava.store.finished import ChunkRecords, FinishedChunk, Outlook, chunk_id, read_chunk, write_chunk
from stllava.store.names import OUTLOOK, PARTS
from stllava.store.shards import Shard, gathered_now, not_in_shards

I = TypeVar("I", bound=Keyed)  # noqa: E741
O = TypeVar("O", bound=Record)  # noqa: E741
N = TypeVar("N", bound="Named")
Items = TypeVar("Items", bound="Named", contravariant=True)
Made = TypeVar("Made", bound=Record, covariant=True)

HOPELESS = 120
"""Things a policy said of which none can be used: it is then not asked for more."""


class Named(Protocol):
    """Something of which a chunk may be made."""

    @property
    def id(self) -> str:
        """What it is told by."""


class ChunkWork(Protocol[Items, Made]):
    """What makes records of a chunk of items; what it needs, such as a policy, it opens when first called."""

    @property
    def device(self) -> str:
        """Where it computes; known once it was called."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the manifest must know of how it works, as far as it has."""

    def __call__(self, chunk: Sequence[Items], /) -> tuple[Sequence[Made], Dropped]:
        """The records of a chunk, and what was left out."""

    def close(self) -> None:
        """End what was opened; called behind the last chunk."""

    def set_aside(self, chunk: Sequence[Items], detail: str, /) -> tuple[Sequence[Made], Dropped]:
        """The same of a chunk that cannot be worked on, since whoever tries dies of it; `detail` says what is known."""


class Executor(Protocol):
    """Where chunks are worked on."""

    def map(
        self, work: ChunkWork[N, O], chunks: Iterable[tuple[int, Sequence[N]]], *, record_type: type[O]
    ) -> Iterator[tuple[int, FinishedChunk[O]]]:
        """What comes of every chunk with its index, in any order, as soon as it is there."""


class InProcess:
    """Works on one chunk after the other, here."""

    def map(
        self, work: ChunkWork[N, O], chunks: Iterable[tuple[int, Sequence[N]]], *, record_type: type[O]
    ) -> Iterator[tuple[int, FinishedChunk[O]]]:
        """What comes of every chunk with its index, in their order."""
        try:
            for index, chunk in chunks:
                yield index, finished_chunk(work, chunk)
        finally:
            work.close()


def finished_chunk(work: ChunkWork[N, O], chunk: Sequence[N]) -> FinishedChunk[O]:
    """What comes of a chunk."""
    records, dropped = work(chunk)
    return FinishedChunk(list(records), dropped, tuple(work.notes), work.device)


_EXECUTOR: ContextVar[Executor | None] = ContextVar("executor", default=None)


@contextmanager
def executing(executor: Executor) -> Iterator[None]:
    """Let the stages that are called within hand their chunks to an executor."""
    token = _EXECUTOR.set(executor)
    try:
        yield
    finally:
        _EXECUTOR.reset(token)


def executor() -> Executor:
    """Where chunks are worked on: what `executing` names, or else this process."""
    return _EXECUTOR.get() or InProcess()


@dataclass(frozen=True)
class MappedChunks(Generic[O]):
    """What came of all chunks of a stage, or of those of one shard of it."""

    records: ChunkRecords[O]
    """The records in the order of the items; read from disk as they are gone through, until the stage is finished."""
    count: int
    """How many there are."""
    dropped: Dropped
    """What was left out."""
    notes: tuple[str, ...]
    """What a reader of the manifest must know of how they were made, each once."""
    device: str
    """Where they were made."""
    paths: tuple[Path, ...] = ()
    """The finished chunks."""
    items: int = 0
    """Items in them."""
    manifest: Manifest | None = None
    """Of a shard, which ends here: that it is done. None of a stage that is not cut."""


def map_chunks(
    items: Sequence[I],
    work: ChunkWork[I, O],
    *,
    to: Path,
    name: str,
    shard: Shard | None,
    record_type: type[O],
    size: int,
    unit: str,
    max_bad: float,
    remedy: str,
) -> MappedChunks[O]:
    """Run `work` over the chunks of the items that are not in the folder `to` yet, or over those of them that are a shard's.

    More than `max_bad` of faults among all items end it, and so does a policy of which nothing can be used, as soon as that is
    plain; `remedy` is then what to do.
    """
    cut = [items[start : start + size] for start in range(0, len(items), size)]
    chunks = [chunk for index, chunk in enumerate(cut) if shard is None or shard.owns(index)]
    paths = [to / PARTS / f"{chunk_id(chunk)}.jsonl" for chunk in chunks]
    tally = _Tally[O](chunks, paths, items=len(items), unit=unit, max_bad=max_bad, remedy=remedy)
    pending: list[int] = []
    for index, path in enumerate(paths):
        if (kept := read_chunk(path, record_type)) is None:
            pending.append(index)
        else:
            tally.take_finished(index, kept)
    if pending and gathered_now() is not None:
        raise not_in_shards(name, pending)
    if pending:
        outlook = Outlook(unit=unit, items=sum(map(len, chunks)), chunk=size)
        write_whole(to / PARTS / OUTLOOK, outlook.model_dump_json() + "\n")
    with Progress(name, sum(map(len, chunks)), unit=unit, done=tally.seen) as progress:
        tally.check()
        if pending:
            for index, made in executor().map(work, ((index, chunks[index]) for index in pending), record_type=record_type):
                write_chunk(paths[index], made)
                progress.advance(len(chunks[index]))
                tally.take_finished(index, made)
                tally.check()
    return tally.result(record_type)


class _Tally(Generic[O]):
    """Counts finished chunks, in whatever order they come, and ends a stage that cannot come to anything."""

    def __init__(
        self, chunks: Sequence[Sequence[object]], paths: Sequence[Path], *, items: int, unit: str, max_bad: float, remedy: str
    ) -> None:
        self.chunks, self.paths = chunks, paths
        self.items, self.unit, self.max_bad, self.remedy = items, unit, max_bad, remedy
        self.dropped, self.seen, self.count = Dropped(), 0, 0
        self.faulty: list[int] = []
        self.notes: dict[str, int] = {}
        self.devices: dict[str, int] = {}

    def take_finished(self, index: int, finished: FinishedChunk[O]) -> None:
        """Count a chunk."""
        self.dropped.take(finished.dropped)
        self.seen += len(self.chunks[index])
        self.count += len(finished.records)
        if finished.dropped.faults:
            self.faulty.append(index)
        for said, words in ((self.notes, finished.notes), (self.devices, (finished.device,))):
            for word in words:
                said[word] = min(index, said.get(word, index))

    def check(self) -> None:
        """End the stage where too many items cannot be used, or where nothing comes of it."""
        try:
            self.dropped.refuse_faults(items=self.items, unit=self.unit, max_bad=self.max_bad, seen=self.seen)
        except StllavaError:
            # What is wrong with these items may be put right: they are then looked at again.
            for index in self.faulty:
                self.paths[index].unlink(missing_ok=True)
            raise
        useless = sum(count for cause, count in self.dropped.items() if cause not in self.dropped.faults)
        if not self.count and useless >= (LET_PASS if self.seen == self.items else HOPELESS):
            shutil.rmtree(self.paths[0].parent)
            raise nothing_left(f"the first {self.seen} of {self.items} {self.unit}", self.dropped, remedy=self.remedy)

    def result(self, record_type: type[O]) -> MappedChunks[O]:
        """All of it."""
        notes, devices = (tuple(sorted(said, key=lambda word: said[word])) for said in (self.notes, self.devices))
        device = ", ".join(filter(None, devices)) or "cpu"
        records = ChunkRecords(self.paths, record_type)
        return MappedChunks(records, self.count, self.dropped, notes, device, tuple(self.paths), self.seen)


def nothing_left(source: str, dropped: Dropped, *, remedy: str) -> NothingLeftError:
    """The error of a stage in which nothing came of its `source`; its causes are told where there are some."""
    return NothingLeftError(
        f"nothing that can be used came of {source}{': ' if dropped else ''}{dropped.told()}",
        expected="at least one",
        remedy=remedy,
    )
