"""Imports a folder of medical images: any tree in, a de-identified image set out.

    from stllava.intake.run import import_images
    import_images(IntakeOptions(), source=Path("study"), to=Path("data"), salt=Path("keys/salt"), existing="resume")

Reads every file below `source`. Writes into `to`: `images/` (and `images-16-bit/`), `images.jsonl` (`Imported`),
`left_out.jsonl` (`LeftOut`), `README.md` and `card.html`, `changes-001.html` and on for a human to confirm, and the manifest
last. Beside the salt, for the user alone, it writes which number is which file and what of a series was chosen
(`<salt>.<id>.files.jsonl`) and what was wrong with those left out (`<salt>.<id>.details.jsonl`). While at work, `parts/` holds
a file for every finished chunk of files, and of the others what was found by looking, from which a killed import goes on.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TextIO

import numpy as np

from stllava.config import IntakeOptions
from stllava.data.image_set import DEEP_FOLDER, STAGE, Imported, LeftOut, RefusedPicture
from stllava.data.images import open_deep
from stllava.errors import StllavaError
from stllava.intake.chunks import Chunks
from stllava.intake.convert import TEXT, MakeToolbox, default_toolbox, worker
from stllava.intake.deidentify.burned_text import Box
from stllava.intake.deidentify.deep_text import even_view
from stllava.intake.deidentify.pseudonyms import hidden_id, open_salt
from stllava.intake.finalise import SEEN_BY_READER, ImageSet, finalise
from stllava.intake.pages.dataset_card import SetStatistics, write_card
from stllava.intake.pages.review import Change, write_sheets
from stllava.intake.pages.written_pictures import written_picture
from stllava.intake.series import choose_slices, header_reader
from stllava.intake.walk import NO_PERMISSION, walk
from stllava.intake.workers import work_through
from stllava.progress import Progress
from stllava.records import Manifest
from stllava.store import (
    MANIFEST,
    PARTS,
    Existing,
    Shard,
    Stage,
    begin_shard,
    file_hash,
    gathered_now,
    locked,
    read_jsonl,
    read_manifest,
    require_file,
    shard_folder,
    shares_out,
)

logger = logging.getLogger(__name__)
_GIB = 1 << 30


@shares_out
def import_images(
    options: IntakeOptions,
    *,
    source: Path,
    to: Path,
    salt: Path,
    refused: Path | None = None,
    existing: Existing = "resume",
    shard: str | None = None,
    make: MakeToolbox = default_toolbox,
) -> Manifest:
    """Write the image set of a tree and return its manifest; `make` gives the readers and what guards the output.

    The salt is made when there is none. The same tree, options and salt give the same bytes, however often the work was
    killed, but for files at which the time limit strikes.

    Args:
        options: What is read of every file, what is written, and which pictures are left out.
        source: The folder of image files; their kind is told by their content.
        to: Folder for the image set, outside of the source.
        salt: File of the secret under which ids are hidden; made where there is none.
        refused: Pictures that stay out since a reader found text in them: the `burned.jsonl` that `judge-check` wrote of an
            earlier import of the same files under the same salt.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
        shard: i/n: do the i-th of n equal parts of the work, in a folder of its own below `to`; `stllava gather` then makes the
            whole of them.
        make: The readers and what guards the output; for tests.

    Raises:
        StllavaError: Where the salt is not safe, or source and output lie inside each other; a set of no pictures is none.
    """
    _refuse_nested(source, to, salt)
    secret = open_salt(salt, output=to)
    unwanted = _read_refused(refused, secret) if refused is not None else ()
    part = Shard.parse(shard) if shard is not None else None
    folder = shard_folder(to, part, (), existing=existing) if part is not None else to
    with locked(folder):
        if part is not None and (to / MANIFEST).is_file():
            return read_manifest(to)  # All of it is gathered already.
        files, details = private_lists(secret, salt, to=to, shard=part)
        listed = files.with_name(f".{files.name}.draft")
        count, fingerprint = _list(source, listed, secret, outside=options.links == "anywhere")
        inputs = {"files": fingerprint, "salt": hidden_id(secret, "salt")}
        inputs |= {"refused": file_hash(refused)} if refused is not None else {}
        try:
            stage = begin_shard(STAGE, to, options, inputs=inputs, existing=existing, shard=part)
        except StllavaError:
            listed.unlink()
            raise
        workers, memory = options.workers or len(os.sched_getaffinity(0)), int(options.memory * _GIB)
        resumed, gathered = (folder / PARTS).is_dir(), gathered_now()
        chosen_here = (resumed or stage.manifest is not None) and (gathered is None or gathered.listed)
        if options.frames != "all" and files.is_file() and chosen_here:
            # What is kept was made by the choice of the list that is there.
            listed.unlink()
        else:
            if options.frames != "all":
                chosen = listed.with_name(f"{listed.name}.chosen")
                look = partial(header_reader, options, make)
                with _private(chosen, "w") as file:
                    choose_slices(listed, file, options, setup=look, count=count, workers=workers, memory=memory)
                chosen.replace(listed)
            listed.replace(files)
        if stage.manifest is not None:
            return stage.manifest
        setup = partial(worker, options, secret, folder, make)
        with (
            Progress(STAGE, count if part is None else _share(count, options.chunk, part), unit="files") as progress,
            _private(details, "a" if resumed else "w") as detail_log,
            Chunks(folder, files, options.chunk, progress, part) as chunks,
        ):
            pending = chunks.pending(detail_log)
            for key, pieces in work_through(
                pending, setup, workers=workers, seconds=options.seconds, memory=memory, listener=chunks
            ):
                chunks.keep(key, pieces, detail_log)
        if part is not None:
            os.sync()  # The pictures were written unsynced; the manifest says that they are there.
            parts = sorted((folder / PARTS).glob("*.jsonl"))
            return stage.finish_shard(parts, counts_in=chunks.listed, counts_out=chunks.pictures, dropped={})
        return _finish(stage, options, chunks, count, source=source, secret=secret, refused=unwanted)


def _read_refused(path: Path, secret: bytes) -> list[str]:
    """Ids of the pictures in a file that readers refused, which must be of this salt."""
    require_file(path, expected="the burned.jsonl that judge-check wrote of an imported set")
    rows = read_jsonl(path, RefusedPicture)
    if any(row.salt != hidden_id(secret, "salt") for row in rows):
        raise StllavaError(
            f"{path} names pictures by another salt, under which no picture of this import is known",
            expected="what readers found in an import with the same salt",
            remedy="Name the salt of that import (--salt).",
        )
    return [row.id for row in rows]


def _share(count: int, size: int, shard: Shard) -> int:
    """Files in a shard's chunks, of so many in chunks of one size."""
    return sum(min(size, count - start) for index, start in enumerate(range(0, count, size)) if shard.owns(index))


def private_lists(secret: bytes, salt: Path, *, to: Path, shard: Shard | None) -> tuple[Path, Path]:
    """Where an import, or a shard of it, notes for the user alone which number is which file, and what was wrong with some."""
    key = hidden_id(secret, "import", str(to.resolve()), *(() if shard is None else (str(shard),)))
    files, details = (salt.with_name(f"{salt.name}.{key}.{what}.jsonl") for what in ("files", "details"))
    return files, details


@dataclass(frozen=True)
class SharedLists:
    """What the shards of an import noted beside the salt."""

    spare: tuple[Path, ...] = ()
    """Their lists, once those of the whole are there."""
    joined: bool = False
    """Whether the whole's list of files is theirs."""


def take_private_lists(shards: Sequence[Shard], *, source: Path, to: Path, salt: Path, fingerprint: str) -> SharedLists:
    """Join what the shards of an import noted beside the salt, for the whole of it.

    Lists of another tree than the one with this `fingerprint` are of an earlier import into that folder, and are not taken.
    """
    secret = open_salt(salt, output=to)
    lists = [private_lists(secret, salt, to=to, shard=shard) for shard in shards]
    files, details = private_lists(secret, salt, to=to, shard=None)
    theirs = [pair for pair in lists if _lists_tree(pair[0], source, secret, fingerprint)]
    if not theirs and details.is_file() and _lists_tree(files, source, secret, fingerprint):
        return SharedLists()  # They were joined before, and those of the shards removed.
    lost = [noted for listed, noted in lists if (listed, noted) not in theirs or not noted.is_file()]
    if lost:
        logger.warning("%s is not here: what was wrong with files of that shard stands where it ran.", lost[0])
    _join([noted for _, noted in theirs if noted.is_file()], details)
    if theirs:
        _join([theirs[0][0]], files)  # Every shard lists all files.
    return SharedLists(tuple(path for pair in theirs for path in pair), joined=bool(theirs))


def _join(lists: Sequence[Path], to: Path) -> None:
    """Write the lines of private lists one behind the other; the lists stay."""
    draft = to.with_name(f".{to.name}.draft")
    with _private(draft, "w") as whole:
        for noted in lists:
            with noted.open(encoding="utf-8") as lines:
                shutil.copyfileobj(lines, whole)
    draft.replace(to)


def _lists_tree(files: Path, source: Path, secret: bytes, fingerprint: str) -> bool:
    """Whether a private list of files is there, and of the tree with that fingerprint."""
    if not files.is_file():
        return False
    tree = _Fingerprint(source)
    with files.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            try:
                _, path, size, changed, cause, *_ = json.loads(line)
                # What was chosen of a series, and what its choice met with, was noted where no cause had been found.
                tree.add(path, size, changed, cause if size == 0 or cause == NO_PERMISSION else None)
            except (ValueError, TypeError):
                return False  # Torn by a disk that failed: it is no list of anything.
    return tree.hidden(secret) == fingerprint


class _Fingerprint:
    """A hidden id of the names, sizes and times of all files of a tree."""

    def __init__(self, source: Path) -> None:
        self._source, self._hash = source, hashlib.sha256()

    def add(self, path: str | Path, size: int, changed: int, cause: str | None) -> None:
        """Take one more file."""
        self._hash.update(json.dumps([os.path.relpath(path, self._source), size, changed, cause]).encode())

    def hidden(self, secret: bytes) -> str:
        """The id under that salt."""
        return hidden_id(secret, "files", self._hash.hexdigest())


def _refuse_nested(source: Path, to: Path, salt: Path) -> None:
    """The three places are apart: output is no input, and the salt travels with neither."""
    source, to, salt = source.resolve(), to.resolve(), salt.resolve()
    for inner, outer, what in (
        (to, source, "the output"),
        (source, to, "the source"),
        (salt, to, "the salt"),
        (salt, source, "the salt"),
    ):
        if inner.is_relative_to(outer):
            raise StllavaError(
                f"{what} {inner} lies inside {outer}",
                expected="source, output and salt apart from each other",
                remedy="Name another place for it.",
            )


def _private(path: Path, mode: Literal["w", "a"]) -> TextIO:
    """Open a file that nobody but the user may read."""
    return open(path, mode, encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600))


def _list(source: Path, to: Path, secret: bytes, *, outside: bool) -> tuple[int, str]:
    """Write what the tree holds, one line a file; returns how many and a hidden id of all names, sizes and times."""
    count, tree = 0, _Fingerprint(source)
    with _private(to, "w") as file:
        for entry in walk(source, outside=outside):
            # Names that are not UTF-8 are surrogates in Python, and escaped in ASCII JSON.
            line = json.dumps([count, str(entry.path), entry.size, entry.changed, entry.cause])
            file.write(line + "\n")
            tree.add(entry.path, entry.size, entry.changed, entry.cause)
            count += 1
    return count, tree.hidden(secret)


def _finish(
    stage: Stage,
    options: IntakeOptions,
    chunks: Chunks,
    count: int,
    *,
    source: Path,
    secret: bytes,
    refused: Collection[str],
) -> Manifest:
    """Everything that takes the whole set: copies, splits, intervals, the lists, the card and the manifest."""
    image_set = finalise(chunks, options, source=source, to=stage.to, salt=secret, refused=refused)
    statistics = SetStatistics()

    def pictures() -> Iterator[Imported]:
        for row in image_set.rows():
            statistics.add(row)
            yield row

    def left() -> Iterator[LeftOut]:
        for row in image_set.left_out():
            statistics.add_left_out(row)
            yield row

    stage.write_records("images", pictures())
    statistics.count_patients(image_set.patients, image_set.groups)
    stage.write_records("left_out", left())
    for path in image_set.spare():
        (stage.to / path).unlink(missing_ok=True)
    for folder in ("images", DEEP_FOLDER):
        for draft in (stage.to / folder).glob("*/.*.draft"):
            draft.unlink()
    chosen, notes = _chosen(chunks, options)
    if strangers := {int(key, 16) for key in refused}.difference(image_set.ids):
        notes.append(f"{len(strangers)} of {len(refused)} pictures that readers refused are not among these files' pictures.")
    card = write_card(stage.to, statistics, options=options, files=count)
    sheets = write_sheets(_changes(image_set, stage.to), stage.to)
    # The pictures were written unsynced; the manifest says that they are there.
    os.sync()
    return stage.finish(
        counts_in=count,
        counts_out=statistics.count,
        dropped=statistics.causes,
        measures={
            **statistics.measures(),
            **{f"withheld {name}": float(n) for name, n in sorted(image_set.withheld.items())},
            **chosen,
        },
        notes=[*statistics.notes(), *notes],
        files=[stage.to / "images.jsonl", stage.to / "left_out.jsonl", *card, *sheets],
    )


def _chosen(chunks: Chunks, options: IntakeOptions) -> tuple[dict[str, float], list[str]]:
    """Figures and sentences of what became of the files of series that come as one file a slice."""
    if options.frames == "all":
        return {}, []
    counts = {"files not chosen": float(chunks.not_chosen())}
    notes = [f"{counts['files not chosen']:.0f} files are slices, or copies of slices, that were not chosen."]
    if options.frames == "mip":
        counts["files projected"] = float(chunks.projected())
        notes.append(f"{counts['files projected']:.0f} files went into maximum intensity projections of their series.")
    return counts, notes


def _changes(image_set: ImageSet, to: Path) -> Iterator[Change]:
    """What a human should look at: pictures with text blacked out as they were written, and those that were kept back."""
    for row in image_set.rows():
        if row.masked:
            boxes = tuple(Box(*box) for box in row.masked)
            pixels = np.asarray(written_picture(to, row.path))
            yield Change(row.id, "masked", f"text found in {len(boxes)} places", boxes, pixels)
        if row.deep is not None and row.deep.masked:
            boxes = tuple(Box(*box) for box in row.deep.masked)
            reason = f"text found in {len(boxes)} places of its 16-bit pixels alone, shown with dark ones raised"
            yield Change(row.id, "masked", reason, boxes, even_view(open_deep(to, row.deep.path)))
    for left in image_set.left_out():
        # Of a projection that was kept back every file is named; none of them is a picture.
        if left.cause == TEXT and left.frame is not None:
            yield Change(f"{left.source}, picture {left.frame}", "quarantined", "it holds text, or may")
        elif left.cause == SEEN_BY_READER:
            yield Change(f"{left.source}, picture {left.frame}", "quarantined", "a reader found text in it")
