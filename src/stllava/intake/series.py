"""Chooses among the files of a series that come as one file a slice: the middle, every n-th, or all as one projection.

    choose_slices(listed, file, options, setup=partial(header_reader, options, make), count=count, workers=2, memory=4 << 30)

Reads the headers of the files of a private list, in workers, and no pixels; writes the list anew with what was chosen. A
stack is what can be laid on top of each other: single-frame files of one patient and series with the same rows, columns,
colours and orientation, localizers apart. Its order is that of the positions along its normal, however files and
instances are numbered. In memory are some 200 bytes a slice.

A file whose header cannot be read is by itself, and is named as any other when it is read; one at whose header a worker
hangs or dies is named at once.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count as counting
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from stllava.config import IntakeOptions
from stllava.errors import StllavaError
from stllava.intake.chunks import NOT_CHOSEN, PROJECTED, read_listed
from stllava.intake.convert import MakeToolbox, Toolbox
from stllava.intake.readers.dicom.stack import MARKS, normal
from stllava.intake.workers import Job, Note, Work, WorkerLoss, work_through
from stllava.progress import Progress

Numbers = NDArray[np.int64]

TILT = 0.01
"""How much the direction cosines of a stack's slices may differ: half a degree."""
SAME_PLACE = 1e-3
"""Millimetres, or instance numbers, up to which slices lie at one place."""
_CAUSES = (None, NOT_CHOSEN, PROJECTED)


def header_reader(options: IntakeOptions, make: MakeToolbox) -> Work:
    """What a worker does with each file to see where it lies."""
    return partial(_read_header, toolbox=make(options))


def _read_header(job: Job, *, toolbox: Toolbox) -> Iterator[str]:
    """JSON of number, stack, name and the rest of the `Slice` of a file that is one; nothing of any other."""
    try:
        read = toolbox.slices.get(toolbox.recognise(job.path) or "")
        header = None if read is None else read(job.path)
    except StllavaError:
        raise
    except Exception:  # noqa: BLE001 - the file is read by itself, and what is wrong with it is told then
        return
    if header is not None:
        # A copy that was cut short must not stand for the whole one; a file without a name of its own is a copy of none.
        stack, name = _hash(header.stack), _hash([header.name, job.size] if header.name else job.number)
        yield json.dumps([job.number, stack, name, header.orientation, header.position, header.instance, header.marks])


def _hash(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps(value).encode(), digest_size=8).digest())


@dataclass
class Slices:
    """Every slice found, as columns of numbers."""

    numbers: "array[int]" = field(default_factory=lambda: array("q"))
    stacks: "array[int]" = field(default_factory=lambda: array("Q"))
    names: "array[int]" = field(default_factory=lambda: array("Q"))
    instances: "array[int]" = field(default_factory=lambda: array("q"))
    positions: "array[float]" = field(default_factory=lambda: array("d"))
    """Three a slice."""
    orientations: "array[int]" = field(default_factory=lambda: array("q"))
    marks: "array[int]" = field(default_factory=lambda: array("q"))
    known_orientations: dict[tuple[float, ...] | None, int] = field(default_factory=dict)
    known_marks: dict[tuple[str, ...], int] = field(default_factory=dict)

    def add(self, line: str) -> None:
        """Keep what was seen of a file, as `header_reader` says it."""
        number, stack, name, orientation, position, instance, marks = json.loads(line)
        self.numbers.append(number)
        self.stacks.append(stack)
        self.names.append(name)
        # A number of a damaged header may be greater than 64 bits hold.
        self.instances.append(max(-(1 << 62), min(1 << 62, instance)))
        self.positions.extend(position)
        turned = None if orientation is None else tuple(orientation)
        self.orientations.append(self.known_orientations.setdefault(turned, len(self.known_orientations)))
        self.marks.append(self.known_marks.setdefault(tuple(marks), len(self.known_marks)))


class Stacks:
    """The slices sorted into stacks."""

    def __init__(self, slices: Slices) -> None:
        self.numbers = np.array(slices.numbers, dtype=np.int64)
        self._stacks = np.array(slices.stacks, dtype=np.uint64)
        self._names = np.array(slices.names, dtype=np.uint64)
        self._instances = np.array(slices.instances, dtype=np.int64)
        self._positions = np.array(slices.positions, dtype=np.float64).reshape(-1, 3)
        self._orientations = np.array(slices.orientations, dtype=np.int64)
        self._marks = np.array(slices.marks, dtype=np.int64)
        self._known_orientations = list(slices.known_orientations)
        self._known_marks = list(slices.known_marks)

    def __iter__(self) -> Iterator[tuple[Numbers, Numbers]]:
        """Of every stack the files' numbers in order of place, and the numbers of copies of these files."""
        order = np.lexsort((self.numbers, self._stacks))
        bounds = np.flatnonzero(np.diff(self._stacks[order])) + 1
        for rows in np.split(order, bounds) if len(order) else ():
            for alike in self._by_orientation(rows):
                rest, copies = self._sorted(alike)
                for stack in self._passes(rest):
                    yield self.numbers[stack], copies
                    copies = copies[:0]

    def _by_orientation(self, rows: Numbers) -> Iterator[Numbers]:
        """Rows of one direction, each compared with the first one of that direction in the order of files."""
        heads: list[tuple[float, ...] | None] = []
        group_of = dict[int, int]()
        for at in self._orientations[rows]:
            if int(at) not in group_of:
                orientation = self._known_orientations[at]
                group_of[int(at)] = next((group for group, head in enumerate(heads) if _aligned(orientation, head)), len(heads))
                if group_of[int(at)] == len(heads):
                    heads.append(orientation)
        which = np.array([group_of[int(at)] for at in self._orientations[rows]])
        for group in range(len(heads)):
            yield rows[which == group]

    def _sorted(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Rows of one direction in order of place, instance and file, and the numbers of copies left out of them."""
        places, order = self._places(rows)
        seen, kept, copies = set[tuple[int, int, int]](), list[int](), list[int]()
        for place, row in zip(places, order, strict=True):
            key = int(place), int(self._instances[row]), int(self._names[row])
            (copies if key in seen else kept).append(row)
            seen.add(key)
        return np.array(kept, dtype=np.int64), self.numbers[np.array(copies, dtype=np.int64)]

    def _places(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Places from 0 along the normal, and the rows that lie there: those of one place by instance and file."""
        first = rows[np.argmin(self.numbers[rows])]
        orientation = self._known_orientations[self._orientations[first]]
        across = np.array([1.0, 0.0, 0.0]) if orientation is None else normal(orientation)
        along = self._positions[rows] @ across
        order = np.argsort(along, kind="stable")
        places = np.concatenate([[0], np.cumsum(np.diff(along[order]) > SAME_PLACE)]).astype(np.int64)
        within = np.lexsort((self.numbers[rows[order]], self._instances[rows[order]], places))
        return places[within], rows[order][within]

    def _passes(self, rows: Numbers) -> Iterator[Numbers]:
        """A stack in order, or its passes where it goes through its places several times and a mark tells them apart.

        A mark with more values than the fullest place has slices numbers something else, such as the slices.
        """
        places, order = self._places(rows)
        fullest = int(np.bincount(places).max())
        if fullest > 1 and int(places[-1]) > 0:
            for mark in range(len(MARKS)):
                values = np.array([self._known_marks[at][mark] for at in self._marks[order]])
                different = np.unique(values)
                if 1 < len(different) <= fullest:
                    for value in different:
                        yield from self._passes(order[values == value])
                    return
        yield order


def _aligned(first: tuple[float, ...] | None, second: tuple[float, ...] | None) -> bool:
    if first is None or second is None:
        return first is second
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) <= TILT


@dataclass(frozen=True)
class _Headers:
    """Keeps the line of progress alive while headers are read."""

    progress: Progress

    def on_message(self, key: int, message: str | Note) -> None:
        """Nothing is shown of a header by itself."""

    def tick(self) -> float:
        """Show the progress if it is time; returns the seconds until it is time again."""
        return self.progress.tick()


def choose_slices(
    listed: Path, to: TextIO, options: IntakeOptions, *, setup: Callable[[], Work], count: int, workers: int, memory: int
) -> None:
    """Write the private list of `count` files anew, with what of every stack is read, and as what."""
    choice = _Choice(np.zeros(count, dtype=np.int8), np.full(count, -1, dtype=np.int64))
    slices, sizes = Slices(), dict[int, int]()
    with Progress("import headers", count, unit="files") as progress:
        chunks = _chunks(listed, options.chunk, sizes)
        headers = _Headers(progress)
        for key, pieces in work_through(
            chunks, setup, workers=workers, seconds=options.seconds, memory=memory, listener=headers
        ):
            for piece in pieces:
                if isinstance(piece, WorkerLoss):
                    choice.lost[piece.number] = piece.cause
                else:
                    slices.add(piece)
            progress.advance(sizes.pop(key))
        progress.advance(count - progress.done)
    for numbers, copies in Stacks(slices):
        choice.take(numbers, copies, options)
    _write(listed, to, choice)


@dataclass(frozen=True)
class _Choice:
    """What becomes of every file, by its number."""

    causes: NDArray[np.int8]
    """Place in `_CAUSES`."""
    places: Numbers
    """In its stack, of a slice that was chosen; else -1."""
    projected: dict[int, Numbers] = field(default_factory=dict)
    """The stack in order of place, by its first file."""
    lost: dict[int, str] = field(default_factory=dict)
    """Causes of files at whose header a worker was lost."""

    def take(self, numbers: Numbers, copies: Numbers, options: IntakeOptions) -> None:
        """Choose of one stack, as multi-frame files are chosen from."""
        self.causes[copies] = _CAUSES.index(NOT_CHOSEN)
        if len(numbers) == 1:
            return
        if options.frames == "mip":
            first = int(numbers.min())
            self.causes[numbers] = _CAUSES.index(PROJECTED)
            self.causes[first], self.projected[first] = 0, numbers
            return
        start, step = (0, options.step) if options.frames == "every" else (len(numbers) // 2, len(numbers))
        self.causes[numbers] = _CAUSES.index(NOT_CHOSEN)
        self.causes[numbers[start::step]] = 0
        self.places[numbers[start::step]] = np.arange(len(numbers))[start::step]


def _chunks(listed: Path, size: int, sizes: dict[int, int]) -> Iterator[tuple[int, list[Job]]]:
    """The files that may be slices, chunk by chunk; `sizes` is told how many they are."""
    with listed.open(encoding="ascii") as file:
        for key in counting():
            lines = list(islice(file, size))
            if not lines:
                return
            jobs = [job for job, cause in map(read_listed, lines) if cause is None]
            if jobs:
                sizes[key] = len(jobs)
                yield key, jobs


def _write(listed: Path, to: TextIO, choice: _Choice) -> None:
    starts = array("Q", [0])
    with listed.open("rb") as lines:
        while lines.readline():
            starts.append(lines.tell())
    with listed.open("rb") as lines, listed.open("rb") as again:
        for number, line in enumerate(lines):
            cause, place = choice.lost.get(number) or _CAUSES[choice.causes[number]], int(choice.places[number])
            stack = choice.projected.get(number)
            if cause is None and place < 0 and stack is None:
                to.write(line.decode("ascii"))
                continue
            entry = json.loads(line)
            entry[4] = cause
            if stack is not None:
                files = []
                for other in stack:
                    again.seek(starts[other])
                    files.append(json.loads(again.readline())[:3])
                entry.append(files)
            elif place >= 0:
                entry.append(place)
            to.write(json.dumps(entry) + "\n")
