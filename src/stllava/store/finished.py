"""What a stage keeps while it is at work: finished chunks of records, and sealed folders of other files."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from pydantic import ValidationError

from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.records import Keyed, Record, content_id
from stllava.store.disk import file_hash, write_whole
from stllava.store.jsonl import IndexedRecords, damaged, read_record, to_jsonl
from stllava.store.names import SEAL

R = TypeVar("R", bound=Record)


class ChunkHead(Record):
    """The first line of a finished chunk: what it lacks, and how to tell that it is whole."""

    dropped: dict[str, int]
    """What was left out, by cause."""
    faults: dict[str, int]
    """Items of it that could not be used, by cause."""
    examples: dict[str, str]
    """An example of each cause."""
    sha256: str
    """Hash of the lines behind this one."""
    notes: tuple[str, ...] = ()
    """What a reader of the manifest must know of how it was made."""
    device: str = ""
    """Where it was made; empty where nobody said."""


class Outlook(Record):
    """What a stage at work has before it, for those who watch."""

    unit: str
    """What its items are."""
    items: int
    """How many there are."""
    chunk: int
    """How many a finished chunk holds; the last one may hold fewer."""


class CurvePoint(Record):
    """One point of a training's curves, as it is made."""

    at: float
    """Seconds since 1970."""
    step: int
    """Optimizer steps done."""
    steps: int
    """Optimizer steps in all."""
    values: dict[str, float]
    """The figures' means since the last point, by name."""


def chunk_id(items: Sequence[Keyed]) -> str:
    """The name of a chunk, which is that of all that its items say."""
    return content_id([item.model_dump(mode="json") for item in items])


@dataclass(frozen=True)
class FinishedChunk(Generic[R]):
    """What came of a chunk."""

    records: list[R]
    """The records."""
    dropped: Dropped
    """What was left out."""
    notes: tuple[str, ...] = ()
    """What a reader of the manifest must know of how it was made."""
    device: str = ""
    """Where it was made; empty where nobody said."""


def write_chunk(path: Path, finished: FinishedChunk[R]) -> None:
    """Keep what came of a chunk."""
    lines = to_jsonl(finished.records).encode()
    head = ChunkHead(
        dropped=dict(sorted(finished.dropped.items())),
        faults=dict(sorted(finished.dropped.faults.items())),
        examples=dict(sorted(finished.dropped.examples.items())),
        sha256=hashlib.sha256(lines).hexdigest(),
        notes=finished.notes,
        device=finished.device,
    )
    write_whole(path, f"{head.model_dump_json()}\n".encode() + lines)


def read_chunk(path: Path, record_type: type[R]) -> FinishedChunk[R] | None:
    """What is kept of a chunk; None where there is nothing or the file is damaged, so that it is to be made again."""
    if not path.is_file():
        return None
    first, _, lines = path.read_bytes().partition(b"\n")
    try:
        head = ChunkHead.model_validate_json(first)
        if hashlib.sha256(lines).hexdigest() != head.sha256:
            return None
        records = [record_type.model_validate_json(line) for line in lines.split(b"\n")[:-1]]
    except ValidationError:
        return None
    dropped = Dropped(head.dropped)
    dropped.faults, dropped.examples = Counter(head.faults), head.examples
    return FinishedChunk(records, dropped, head.notes, head.device)


class ChunkRecords(Iterable[R]):
    """The records of finished chunks in their order, as often as they are gone through, a chunk at a time in memory."""

    def __init__(self, paths: Sequence[Path], record_type: type[R]) -> None:
        self._paths, self._record_type = paths, record_type

    def __iter__(self) -> Iterator[R]:
        for path in self._paths:
            yield from self._read(path).records

    def in_order(self, rank: Callable[[R], int]) -> IndexedRecords[R]:
        """The same records in the order of a number that each of them has, equal ones as they stand."""
        ranks = array("q")
        index = IndexedRecords(self._paths, self._record_type)
        for number, path in enumerate(self._paths):
            found = self._read(path)
            with path.open("rb") as file:
                start = len(file.readline())  # The head.
                for record, line in zip(found.records, file, strict=True):
                    ranks.append(rank(record))
                    index.add(number, start)
                    start += len(line)
        return index.rearranged(np.argsort(np.frombuffer(ranks, dtype=np.int64), kind="stable") if ranks else ())

    def _read(self, path: Path) -> FinishedChunk[R]:
        found = read_chunk(path, self._record_type)
        if found is None:
            raise damaged(path, "it is not the chunk that was written there just now")
        return found


class Seal(Record):
    """The files of a folder as they were when it was whole; `seal.json` there."""

    files: dict[str, str]
    """Hash of each file by name."""


def seal(folder: Path) -> None:
    """Note what a folder holds, now that it is whole."""
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.is_file() and path.name != SEAL}
    write_whole(folder / SEAL, Seal(files=files).model_dump_json() + "\n")


def is_sealed(folder: Path) -> bool:
    """Whether a folder holds all that it held when it was sealed, unchanged."""
    try:
        files = read_record(folder / SEAL, Seal).files if (folder / SEAL).is_file() else None
    except StllavaError:
        return False
    return files is not None and all((folder / name).is_file() and file_hash(folder / name) == files[name] for name in files)
