"""JSONL files of records: one record a line, each line checked as it is read."""

from array import array
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO, TypeVar, overload

import numpy as np
from pydantic import ValidationError

from stllava.errors import StllavaError
from stllava.records import Keyed, Record
from stllava.store.disk import require_file

R = TypeVar("R", bound=Record)


def to_jsonl(records: Iterable[Record]) -> str:
    """One record a line."""
    return "".join(record.model_dump_json() + "\n" for record in records)


def read_jsonl(path: Path, record_type: type[R], *, may_be_torn: bool = False) -> list[R]:
    """All records of a JSONL file; a broken line or a duplicate id is refused with its line number.

    Eight bytes an id tell whether one may stand twice; only then are they looked at by name. Of a file that is added to line
    by line and so `may_be_torn`, a part of a record behind the last whole line is passed over.
    """
    require_file(path, expected=f"a JSONL file of {record_type.__name__} records")
    records: list[R] = []
    hashes = array("q")
    last = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = record_type.model_validate_json(line.removeprefix(BOM_UTF8))
            except ValidationError as error:
                if may_be_torn and not line.endswith(b"\n"):
                    continue
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise StllavaError(
                    f"{path}, line {number}: {first['msg']}{f' at {where!r}' if where else ''}",
                    expected=f"one {record_type.__name__} record in JSON a line",
                    remedy="Fix or remove that line.",
                ) from None
            if isinstance(record, Keyed):
                hashes.append(hash(record.id))
            records.append(record)
            last = number
    if np.unique(np.frombuffer(hashes, dtype=np.int64)).size < len(hashes):
        _refuse_repeated_ids(path, record_type, last=last)
    return records


def _refuse_repeated_ids(path: Path, record_type: type[Record], *, last: int) -> None:
    """Name the first id that stands in two of the lines up to the `last`, if ids are equal and not their hashes alone."""
    lines: dict[str, int] = {}
    with path.open("rb") as file:
        for number, line in enumerate(islice(file, last), 1):
            record = record_type.model_validate_json(line.removeprefix(BOM_UTF8)) if line.strip() else None
            if isinstance(record, Keyed):
                if record.id in lines:
                    raise StllavaError(
                        f"{path}, line {number}: id {record.id!r} stands in line {lines[record.id]} already",
                        expected="each id once",
                        remedy="Remove one of the two lines.",
                    )
                lines[record.id] = number


class RecordStream(Iterable[R]):
    """The records of a JSONL file, one by one, as often as it is gone through."""

    def __init__(self, path: Path, record_type: type[R]) -> None:
        self._path, self._record_type = path, record_type

    def __iter__(self) -> Iterator[R]:
        with self._path.open("rb") as file:
            for line in file:
                yield self._record_type.model_validate_json(line)


class IndexedRecords(Sequence[R]):
    """Records of JSONL files by number, each read from disk when it is asked for; 16 bytes of each are held."""

    def __init__(self, paths: Sequence[Path], record_type: type[R]) -> None:
        self._paths, self._record_type = paths, record_type
        self._files, self._offsets = array("q"), array("q")

    def add(self, file: int, offset: int) -> None:
        """Take one more record: the line that begins at a byte of the file of this number."""
        self._files.append(file)
        self._offsets.append(offset)

    def file_of(self, number: int) -> int:
        """The number of the file that holds the record of this number."""
        return self._files[number]

    def rearranged(self, order: Iterable[int]) -> "IndexedRecords[R]":
        """The records of these numbers, in this order."""
        other = IndexedRecords(self._paths, self._record_type)
        for number in order:
            other.add(self._files[number], self._offsets[number])
        return other

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, number: int) -> R: ...
    @overload
    def __getitem__(self, number: slice) -> "IndexedRecords[R]": ...
    def __getitem__(self, number: int | slice) -> "R | IndexedRecords[R]":
        if isinstance(number, slice):
            return self.rearranged(range(len(self))[number])
        with self._paths[self._files[number]].open("rb") as file:
            return self._read(file, number)

    def __iter__(self) -> Iterator[R]:
        for at, numbers in groupby(range(len(self)), key=self._files.__getitem__):
            with self._paths[at].open("rb") as file:
                for number in numbers:
                    yield self._read(file, number)

    def _read(self, file: BinaryIO, number: int) -> R:
        file.seek(self._offsets[number])
        return self._record_type.model_validate_json(file.readline())


def read_record(path: Path, record_type: type[R]) -> R:
    """The one record that a JSON file holds; a damaged one is refused by name."""
    try:
        return record_type.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise damaged(path, f"{first['msg']}{f' at {where!r}' if where else ''}") from None


def damaged(path: Path, how: str) -> StllavaError:
    """The error of a file that is there and cannot be what stllava wrote."""
    return StllavaError(
        f"{path} is damaged: {how}",
        expected="the file as stllava wrote it",
        remedy="Restore it, or delete it and give the command that made it again: finished work is kept.",
    )
