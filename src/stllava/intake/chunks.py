"""The importer's chunks of files: which are still to be read, and what is kept of each when it is done.

Reads the private list of files, in which `series.py` has noted its choice of slices; writes `parts/<chunk>.jsonl`,
a line for each picture (`+` and a `WrittenImage`) or file left out (`-` and a `LeftOut`). A part counts as done when every
picture it names is there in its size, to its end. Until then `parts/findings/<chunk>.jsonl` holds a `FrameFindings` for every
picture that was looked at, so that looking, which costs seconds, is not done again after a kill.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count, islice
from os import SEEK_END
from pathlib import Path
from typing import TextIO

from pydantic import ValidationError

from stllava.data.image_set import LeftOut
from stllava.intake.convert import FrameFindings, SkippedImage, WrittenImage
from stllava.intake.workers import Job, Note, Piece, WorkerLoss
from stllava.progress import Progress
from stllava.store import PARTS, Log, Shard, write_whole

NOT_CHOSEN, PROJECTED = "not-chosen", "projected"
"""What the list says of a file that is not read for itself: another of its stack was chosen, or it is part of a projection."""
_WRITTEN, _SKIPPED = "+", "-"
ENDS = {".png": b"IEND\xaeB`\x82", ".jpg": b"\xff\xd9"}
"""The last bytes of a picture by its suffix."""
_WRITTEN_BEGINS = '{"row":{"id":'


@dataclass
class Chunks:
    """The list of files cut into chunks of one size, of which those at work are in memory."""

    to: Path
    """The set's folder."""
    files: Path
    """JSONL of number, path, size, time of change and cause of every file, and the place in its stack of a chosen one, or
    the number, path and size of every file of the stack that is projected with it."""
    size: int
    """Files a chunk."""
    progress: Progress
    """Counts files, and pictures beside them."""
    shard: Shard | None = None
    """Whose chunks alone are worked on; None: all."""
    pictures: int = 0
    """Written so far, those of an earlier start among them."""
    listed: int = 0
    """Files in the chunks that were given out or found done."""
    _at_work: dict[int, tuple[int, list[LeftOut]]] = field(default_factory=dict)
    _findings: dict[int, Log] = field(default_factory=dict)

    def __enter__(self) -> "Chunks":
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._findings.values():
            log.close()

    def on_message(self, key: int, message: str | Note) -> None:
        """Count a picture, or keep what was found in one until its chunk is done."""
        if isinstance(message, Note):
            if key not in self._findings:
                self._findings[key] = Log(self._findings_path(key))
            self._findings[key].append(FrameFindings.model_validate_json(message.text))
        elif message.startswith(_WRITTEN_BEGINS):
            self.pictures += 1
            self._advance(0)

    def tick(self) -> float:
        """Show the progress if it is time; returns the seconds until it is time again."""
        return self.progress.tick()

    def pending(self, detail_log: TextIO) -> Iterator[tuple[int, list[Job]]]:
        """Every chunk with a file to be read that is not done yet; the others are done on the way."""
        with self.files.open(encoding="ascii") as file:
            for key in count():
                listed = [read_listed(line) for line in islice(file, self.size)]
                if not listed:
                    return
                if self.shard is not None and not self.shard.owns(key):
                    continue
                self.listed += len(listed)
                if self._is_done(key):
                    self._findings_path(key).unlink(missing_ok=True)
                    self.progress.resumed += len(listed)
                    self._advance(len(listed))
                    continue
                left = [
                    LeftOut(number=job.number, source=None, frame=None, cause=cause)
                    for job, cause in listed
                    if cause not in (None, NOT_CHOSEN, PROJECTED)
                ]
                self._at_work[key] = len(listed), left
                notes = self._notes(key)
                jobs = [replace(job, notes=tuple(notes[job.number])) for job, cause in listed if cause is None]
                if jobs:
                    yield key, jobs
                else:
                    self.keep(key, [], detail_log)

    def keep(self, key: int, pieces: list[Piece], detail_log: TextIO) -> None:
        """Keep what came of a chunk, the details in the private list `detail_log` alone."""
        files, left = self._at_work.pop(key)
        lines = [_SKIPPED + row.model_dump_json() for row in left]
        for piece in pieces:
            if isinstance(piece, str) and piece.startswith(_WRITTEN_BEGINS):
                lines.append(_WRITTEN + piece)
                continue
            if isinstance(piece, WorkerLoss):
                row = LeftOut(number=piece.number, source=None, frame=None, cause=piece.cause)
                skipped = SkippedImage(row=row, detail=piece.detail)
            else:
                skipped = SkippedImage.model_validate_json(piece)
            lines.append(_SKIPPED + skipped.row.model_dump_json())
            detail_log.write(skipped.model_dump_json() + "\n")
        detail_log.flush()
        write_whole(self._part(key), "".join(f"{line}\n" for line in lines))
        if key in self._findings:
            self._findings.pop(key).close()
        self._findings_path(key).unlink(missing_ok=True)
        self._advance(files)

    def rows(self) -> Iterator[WrittenImage | LeftOut]:
        """Everything that is kept, chunk by chunk."""
        for part in sorted((self.to / PARTS).glob("*.jsonl")):
            with part.open(encoding="utf-8") as file:
                for line in file:
                    yield (WrittenImage if line[0] == _WRITTEN else LeftOut).model_validate_json(line[1:])

    def paths(self) -> Iterator[tuple[int, Path]]:
        """The number and path of every file of the list."""
        with self.files.open(encoding="ascii") as file:
            for line in file:
                number, path, *_ = json.loads(line)
                yield number, Path(path)

    def not_chosen(self) -> int:
        """How many files are not in the set because others of their stacks were chosen."""
        with self.files.open(encoding="ascii") as file:
            return sum(f'"{NOT_CHOSEN}"' in line and read_listed(line)[1] == NOT_CHOSEN for line in file)

    def projected(self) -> int:
        """How many files went into maximum intensity projections."""
        return sum(row.files for row in self.rows() if isinstance(row, WrittenImage) and row.files is not None)

    def _part(self, key: int) -> Path:
        return self.to / PARTS / f"{key:08d}.jsonl"

    def _findings_path(self, key: int) -> Path:
        return self.to / PARTS / "findings" / f"{key:08d}.jsonl"

    def _notes(self, key: int) -> dict[int, list[str]]:
        """By file what was kept of pictures that were looked at before a kill."""
        notes = defaultdict[int, list[str]](list)
        if self._findings_path(key).is_file():
            log = self._findings[key] = Log(self._findings_path(key))
            for _, line in log.lines():
                try:
                    findings = FrameFindings.model_validate_json(line)
                except ValidationError:
                    # A damaged line costs another look at that picture, no more.
                    continue
                notes[findings.number].append(findings.model_dump_json())
        return notes

    def _advance(self, files: int) -> None:
        self.progress.advance(files, extra=f"{self.pictures:,} pictures")

    def _is_done(self, key: int) -> bool:
        part = self._part(key)
        if not part.is_file():
            return False
        with part.open(encoding="utf-8") as file:
            images = [WrittenImage.model_validate_json(line[1:]) for line in file if line[0] == _WRITTEN]
        done = all(_is_whole(self.to, image) for image in images)
        self.pictures += len(images) if done else 0
        return done


def read_listed(line: str) -> tuple[Job, str | None]:
    """A file of the list, and why it is not read for itself."""
    number, path, size, _, cause, *chosen = json.loads(line)
    if not chosen:
        return Job(number, Path(path), size), cause
    if isinstance(chosen[0], int):
        return Job(number, Path(path), size, chosen[0]), cause
    stack = (Job(other, Path(where), large, stack_index) for stack_index, (other, where, large) in enumerate(chosen[0]))
    return Job(number, Path(path), size, stack=tuple(stack)), cause


def _is_whole(to: Path, image: WrittenImage) -> bool:
    """Whether a picture's file is there in its size and to its end, and that of its 16-bit pixels where they were kept."""
    deep = image.row.deep
    kept = deep is None or image.deep_size is None or _has_end(to / deep.path, image.deep_size)
    return kept and _has_end(to / image.row.path, image.size)


def _has_end(path: Path, size: int) -> bool:
    """Whether a file has its size and ends as its format does: zeros at the end are what a power cut or a torn copy leaves."""
    end = ENDS[path.suffix]
    if not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        file.seek(-min(size, len(end)), SEEK_END)
        return file.read() == end
