"""Turns one source file into pictures on disk and a line for each: the work of one worker of the importer.

Reads the file through a reader, or the files of a stack for their maximum intensity projection; writes
`images/<two digits>/<id>.png` (or .jpg) below the set's folder, each by renaming a draft. What it says of a file that cannot
be used is a cause and, for the user's eyes only, a detail.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from PIL import Image

from stllava.config import IntakeOptions
from stllava.data.image_set import Imported, LeftOut
from stllava.data.images import MAX_PIXELS
from stllava.data.likeness import picture_hash
from stllava.errors import ItemError, StllavaError
from stllava.intake.deidentify.allowlist import allow, check_clean, day_number, day_shift, hidden_id, image_id
from stllava.intake.deidentify.burned_text import LOAD_SECONDS, SECONDS_A_MEGAPIXEL, Looked, Treated
from stllava.intake.encode import encoded
from stllava.intake.patients import Hidden, hide
from stllava.intake.quality import fault, pixel_digest
from stllava.intake.readers.dicom.stack import Slice
from stllava.intake.readers.frame import Frame
from stllava.intake.workers import At, Job, Note, Said, Work
from stllava.records import Record

TEXT = "burned-in-text"
"""Why a picture that holds text, or may, is left out."""


class Projection(Protocol):
    """The greatest values of one stack's files, taken one by one."""

    def add(self, path: Path, *, off: int) -> None:
        """Take one file, `off` places from the middle of the stack; one that raises changes nothing."""

    def frame(self, *, total: int) -> Frame:
        """The picture of the files taken so far, of a stack of `total`."""


class Looks(Protocol):
    """What treats the frames of one file in their order, and may remember the earlier ones."""

    def treat(self, frame: Frame, looked: Looked | None = None) -> Treated:
        """Black out text, or keep the picture back; `looked` is what was found in the frame when it was looked at."""


@dataclass(frozen=True)
class Parts:
    """How files become frames, and what happens to text in them."""

    recognise: Callable[[Path], str | None]
    """The kind of a file by its content; None of what is no image."""
    readers: Mapping[str, Callable[[Path], Iterable[Frame]]]
    """How each kind is read."""
    looks: Callable[[], Looks]
    """Called for each file: what looks for text in its frames, which share what stays the same."""
    slices: Mapping[str, Callable[[Path], Slice | None]] = field(default_factory=dict)
    """How the header of each kind whose series come as one file a slice is read; None of a file that is no slice."""
    projections: Mapping[str, Callable[[], Projection]] = field(default_factory=dict)
    """How the files of a stack of each such kind become one picture."""


MakeParts = Callable[[IntakeOptions], Parts]
"""Called in each worker; a function of a module, since it is pickled."""


def made_of(options: IntakeOptions) -> Parts:
    """The readers and the finder of text that the package has; each imports its library at the first file it needs it for."""
    from stllava.intake.deidentify import burned_text
    from stllava.intake.readers import nifti, photograph, recognise, tiff
    from stllava.intake.readers.dicom import stack
    from stllava.intake.readers.dicom.read import DicomOptions, read_dicom

    slides = tiff.TiffOptions(level=options.level, tile=options.tile)
    text = burned_text.BurnedOptions(look=options.look_for_text, keep_markers=options.keep_markers)
    dicoms = DicomOptions(
        window=options.window, frames=options.frames, step=options.step, max_pixels=min(options.largest, MAX_PIXELS)
    )
    volumes = nifti.NiftiOptions(plane=options.plane, slices=options.frames, step=options.step)
    readers: dict[str, Callable[[Path], Iterable[Frame]]] = {
        "dicom": partial(read_dicom, options=dicoms),
        "nifti": partial(nifti.read_nifti, options=volumes),
        "tiff": partial(tiff.read_tiff, options=slides),
        "slide": partial(tiff.read_tiff, options=slides),
        "photograph": photograph.read_photograph,
    }
    slices = {"dicom": partial(stack.read_slice, coloured=options.frames != "mip")}
    projections = {"dicom": partial(stack.Projection, dicoms)}
    return Parts(recognise.recognise, readers, partial(burned_text.Looker, text), slices, projections)


class Made(Record):
    """A picture that was written, with what only the whole set can say still open."""

    row: Imported
    """Its line, but for near copy, split and interval, and with the patient that its file alone says."""
    number: int
    """Place of its file among all."""
    place: int
    """Its place in what was read of the file."""
    digest: str
    """`pixel_digest` in hexadecimal."""
    picture: str | None
    """`picture_hash` in hexadecimal; None of a plain picture."""
    size: int
    """Of its file, in bytes."""
    day: int | None
    """Of its study, moved by a secret number of days that is the hidden patient's own."""
    who: Hidden
    """Whom it is of, as far as its file alone says."""
    withheld: dict[str, int]
    """Facts that the allow-list did not let through, by name."""
    files: int | None = None
    """How many files it is the projection of; None of a picture of one file."""


class Missed(Record):
    """A file or picture that was not written."""

    row: LeftOut
    """Its line."""
    detail: str
    """What is wrong, which may name the file: for the private list only."""


class Seen(Record):
    """What was found in a picture by looking, kept until its file is done: places, and nothing of the text."""

    number: int
    """Place of its file among all, or of the first of its stack."""
    source: str
    """The hidden id of the bytes that were looked at."""
    place: int
    """Its place in what was read of the file."""
    looked: Looked
    """As `Treated` has it."""


def worker(options: IntakeOptions, salt: bytes, to: Path, make: MakeParts) -> Work:
    """What a worker does with each file."""
    # Pillow itself would refuse smaller pictures than the options allow.
    Image.MAX_IMAGE_PIXELS = max(options.largest, MAX_PIXELS)
    parts = make(options)
    one = partial(convert, options=options, salt=salt, to=to, parts=parts)
    many = partial(project, options=options, salt=salt, to=to, parts=parts)
    return lambda job: many(job) if job.stack else one(job)


def convert(job: Job, *, options: IntakeOptions, salt: bytes, to: Path, parts: Parts) -> Iterator[Said]:
    """Write the pictures of a file; yields JSON of a `Made` or `Missed` for each, and of a `Missed` where it ends early.

    Before and after a picture is looked at it says so, since that may take longer than decoding.
    """
    source: str | None = None
    try:
        source = _digest(job.path)
        kind = parts.recognise(job.path)
        if kind is None:
            raise ItemError("not-an-image", "no known image format")
        count, looks = 0, _Recalling(parts.looks(), job, hidden_id(salt, "source", source))
        for place, frame in enumerate(parts.readers[kind](job.path)):
            count += 1
            if job.place is not None:
                frame = replace(frame, facts=replace(frame.facts, frame=job.place))
            yield _reading(frame, (job.number,), job.size)
            try:
                _check_use(frame, options)
                treated = looks.treat(frame, place)
                yield from looks.notes(treated, place)
                made = _write(frame, treated, job, place, source=source, salt=salt, options=options, to=to)
                yield made.model_dump_json()
            except ItemError as error:
                yield _missed(job, source, place, error.cause, str(error), salt)
            yield At((job.number,), job.size)
        if not count:
            raise ItemError("no-picture", f"a file of kind {kind} without a picture")
    except StllavaError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged file does to a decoder is counted, and told in the private list
        yield _missed(job, source, None, *_told(error, options), salt)


def project(job: Job, *, options: IntakeOptions, salt: bytes, to: Path, parts: Parts) -> Iterator[Said]:
    """Write the one picture of a stack's files; yields JSON of a `Missed` for each that cannot be used, then of a `Made`.

    The picture's source is the hash of the files' hashes in their order. Where the picture itself is kept out, so is each
    of its files.
    """
    projection: Projection | None = None
    used: list[tuple[Job, str]] = []
    for file in job.tried():
        yield At((file.number,), file.size)
        source: str | None = None
        try:
            source = _digest(file.path)
            if projection is None:
                begin = parts.projections.get(parts.recognise(file.path) or "")
                if begin is None:
                    raise ItemError("changed", "the file is no longer the slice that it was")
                projection = begin()
            projection.add(file.path, off=abs((file.place or 0) - len(job.stack) // 2))
            used.append((file, source))
        except StllavaError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            yield _missed(file, source, None, *_told(error, options), salt)
    if projection is None or not used:
        return
    yield At(tuple(file.number for file, _ in used), sum(file.size for file, _ in used))
    whole = hashlib.sha256("".join(source for _, source in used).encode()).hexdigest()
    first = min((file for file, _ in used), key=lambda file: file.number)
    try:
        frame = projection.frame(total=len(job.stack))
        yield _reading(frame, tuple(file.number for file, _ in used), 0)
        _check_use(frame, options)
        looks = _Recalling(parts.looks(), job, hidden_id(salt, "source", whole))
        treated = looks.treat(frame, 0)
        yield from looks.notes(treated, 0)
        made = _write(frame, treated, first, 0, source=whole, salt=salt, options=options, to=to)
        yield made.model_copy(update={"files": len(used)}).model_dump_json()
    except StllavaError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        yield _missed(first, whole, 0, *_told(error, options), salt)
        for file, source in used:
            if file is not first:
                yield _missed(file, source, None, *_told(error, options), salt)


class _Recalling:
    """Looks for text in the frames of one file, but for those whose finds are in the job's notes."""

    def __init__(self, looks: Looks, job: Job, source: str) -> None:
        self._looks, self._number, self._source = looks, job.number, source
        seen = map(Seen.model_validate_json, job.notes)
        # A stack that has lost a file since is another picture.
        self._known = {one.place: one.looked for one in seen if one.source == source}

    def treat(self, frame: Frame, place: int) -> Treated:
        """What becomes of the frame at that place."""
        return self._looks.treat(frame, self._known.get(place))

    def notes(self, treated: Treated, place: int) -> Iterator[Note]:
        """What is to be kept of that; nothing of what was not looked at, or is kept already."""
        if treated.looked and place not in self._known:
            seen = Seen(number=self._number, source=self._source, place=place, looked=treated.looked)
            yield Note(seen.model_dump_json())


def _reading(frame: Frame, numbers: tuple[int, ...], size: int) -> At:
    return At(numbers, size, LOAD_SECONDS + SECONDS_A_MEGAPIXEL * frame.pixels.shape[0] * frame.pixels.shape[1] / 1e6)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _told(error: Exception, options: IntakeOptions) -> tuple[str, str]:
    """The cause and detail of what kept a file or picture out."""
    if isinstance(error, ItemError):
        return error.cause, str(error)
    if isinstance(error, MemoryError):
        return "too-much-memory", f"needs more than {options.memory} GiB"
    return "unreadable", f"{type(error).__name__}: {error}"


def _missed(job: Job, source: str | None, place: int | None, cause: str, detail: str, salt: bytes) -> str:
    hidden = None if source is None else hidden_id(salt, "source", source)
    row = LeftOut(number=job.number, source=hidden, frame=place, cause=cause)
    # A file name that is not UTF-8 would not go into JSON.
    return Missed(row=row, detail=detail.encode(errors="backslashreplace").decode()).model_dump_json()


def _check_use(frame: Frame, options: IntakeOptions) -> None:
    """Raise the `ItemError` of a picture that is of no use, before anything is looked for in it."""
    wrong = fault(frame.pixels, options)
    if wrong is not None:
        raise ItemError(wrong, f"{frame.pixels.shape[1]} × {frame.pixels.shape[0]} pixels")


def _write(
    frame: Frame, treated: Treated, job: Job, place: int, *, source: str, salt: bytes, options: IntakeOptions, to: Path
) -> Made:
    """Write what a frame became, or raise the `ItemError` that keeps it out."""
    if treated.frame is None:
        raise ItemError(TEXT, treated.reason)
    if treated.boxes and options.text == "quarantine":
        raise ItemError(TEXT, "text was found, and the options leave such pictures out")
    pixels, who = treated.frame.pixels, frame.identity
    hidden = hide(who, salt, source=source)
    allowed = allow(treated.frame.facts, frame.labels, series=hidden.series)
    facts = allowed.facts
    image = Image.fromarray(pixels)
    data = encoded(pixels, options)
    name = image_id(salt, source, frame=place)
    row = Imported(
        id=name,
        path=f"images/{name[:2]}/{name}.{'png' if options.format == 'png' else 'jpg'}",
        width=image.width,
        height=image.height,
        modality=facts.modality,
        body_part=facts.body_part,
        view=facts.view,
        laterality=facts.laterality,
        labels=allowed.labels,
        source=hidden_id(salt, "source", source),
        patient=hidden.patient,
        study=hidden.study,
        series=hidden.series,
        frame=facts.frame,
        done=facts.done,
        masked=tuple((box.left, box.top, box.right, box.bottom) for box in treated.boxes),
        content=hashlib.sha256(data).hexdigest(),
        split="",
        interval=None,
    )
    told = json.dumps([facts.modality, facts.body_part, facts.view, facts.laterality, facts.done, allowed.labels])
    # A number stands in many a header by chance, and the allow-list has let short ones through only.
    check_clean(re.sub(r"\d+", "", told).encode(), who.texts, what="the line of a picture")
    check_clean(data, who.texts, what="a picture")
    picture = picture_hash(image)
    _put(to / row.path, data)
    day = day_number(who.date)
    return Made(
        row=row,
        number=job.number,
        place=place,
        digest=pixel_digest(pixels).hex(),
        picture=None if picture is None else f"{picture:x}",
        size=len(data),
        day=None if day is None else day + day_shift(salt, hidden.patient),
        who=hidden,
        withheld=dict(sorted(allowed.dropped.items())),
    )


def _put(path: Path, data: bytes) -> None:
    """Write a picture whole or not at all; unsynced, since a resumed import looks at the sizes of what it finds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    draft.write_bytes(data)
    draft.replace(path)
