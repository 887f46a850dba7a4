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
from pydantic import Field

from stllava.config import IntakeOptions
from stllava.data.image_set import DEEP_FOLDER, DeepImage, Imported, LeftOut
from stllava.data.images import MAX_PIXELS
from stllava.data.likeness import picture_hash
from stllava.errors import ItemError, StllavaError
from stllava.intake.deidentify.allowlist import allow
from stllava.intake.deidentify.burned_text import LOAD_SECONDS, SECONDS_A_MEGAPIXEL, Box, Findings, MaskResult, TextMasker
from stllava.intake.deidentify.deep_text import VIEWS, DeepMasker
from stllava.intake.deidentify.leaks import check_clean
from stllava.intake.deidentify.pseudonyms import Pseudonyms, day_number, day_shift, hidden_id, image_id, pseudonymise
from stllava.intake.encode import encoded, png
from stllava.intake.quality import fault, pixel_digest
from stllava.intake.readers.dicom.stack import Slice
from stllava.intake.readers.frame import DeepPixels, Frame
from stllava.intake.workers import Heartbeat, Job, Message, Note, Work
from stllava.records import Record

TEXT = "burned-in-text"
"""Why a picture that holds text, or may, is left out."""


class Projection(Protocol):
    """The greatest values of one stack's files, taken one by one."""

    def add(self, path: Path, *, off: int) -> None:
        """Take one file, `off` places from the middle of the stack; one that raises changes nothing."""

    def frame(self, *, total: int) -> Frame:
        """The picture of the files taken so far, of a stack of `total`."""


@dataclass(frozen=True)
class Toolbox:
    """How files become frames, and what happens to text in them."""

    recognise: Callable[[Path], str | None]
    """The kind of a file by its content; None of what is no image."""
    readers: Mapping[str, Callable[[Path], Iterable[Frame]]]
    """How each kind is read."""
    masker: Callable[[], TextMasker]
    """Called for each file: what looks for text in its frames, which share what stays the same."""
    slices: Mapping[str, Callable[[Path], Slice | None]] = field(default_factory=dict)
    """How the header of each kind whose series come as one file a slice is read; None of a file that is no slice."""
    projections: Mapping[str, Callable[[], Projection]] = field(default_factory=dict)
    """How the files of a stack of each such kind become one picture."""


MakeToolbox = Callable[[IntakeOptions], Toolbox]
"""Called in each worker; a function of a module, since it is pickled."""


def default_toolbox(options: IntakeOptions) -> Toolbox:
    """The readers and the finder of text that the package has; each imports its library at the first file it needs it for."""
    from stllava.intake.deidentify import burned_text
    from stllava.intake.readers import nifti, photograph, recognise, tiff
    from stllava.intake.readers.dicom import stack
    from stllava.intake.readers.dicom.read import DicomOptions, read_dicom

    slides = tiff.TiffOptions(
        frames=options.frames,
        step=options.step,
        level=options.level,
        tile=options.tile,
        tissue=options.tissue,
        keep_16_bit=options.keep_16_bit,
    )
    text = burned_text.BurnedOptions(
        look_for_text=options.look_for_text, keep_markers=options.keep_markers, enlarge_up_to=options.enlarge_up_to
    )
    dicoms = DicomOptions(
        window=options.window,
        frames=options.frames,
        step=options.step,
        max_pixels=min(options.largest, MAX_PIXELS),
        keep_16_bit=options.keep_16_bit,
    )
    volumes = nifti.NiftiOptions(
        plane=options.plane,
        frames=options.frames,
        step=options.step,
        time_point=options.time_point,
        window=options.nifti_window,
        keep_16_bit=options.keep_16_bit,
    )
    readers: dict[str, Callable[[Path], Iterable[Frame]]] = {
        "dicom": partial(read_dicom, options=dicoms),
        "nifti": partial(nifti.read_nifti, options=volumes),
        "tiff": partial(tiff.read_tiff, options=slides),
        "slide": partial(tiff.read_tiff, options=slides),
        "photograph": photograph.read_photograph,
    }
    slices = {"dicom": partial(stack.read_slice, coloured=options.frames != "mip")}
    projections = {"dicom": partial(stack.MaximumProjection, dicoms)}
    return Toolbox(recognise.recognise, readers, partial(burned_text.FrameMasker, text), slices, projections)


class WrittenImage(Record):
    """A picture that was written, with what only the whole set can say still open."""

    row: Imported
    """Its line, but for near copy, split and interval, and with the patient that its file alone says."""
    number: int
    """Place of its file among all."""
    index: int
    """Its place in what was read of the file."""
    digest: str
    """`pixel_digest` in hexadecimal."""
    picture: str | None
    """`picture_hash` in hexadecimal; None of a plain picture."""
    size: int
    """Of its file, in bytes."""
    deep_size: int | None = Field(default=None, exclude_if=lambda size: size is None)
    """Of the file of its 16-bit pixels, where they were kept, in bytes."""
    day: int | None
    """Of its study, moved by a secret number of days that is the hidden patient's own."""
    pseudonyms: Pseudonyms
    """Whom it is of, as far as its file alone says."""
    withheld: dict[str, int]
    """Facts that the allow-list did not let through, by name."""
    files: int | None = None
    """How many files it is the projection of; None of a picture of one file."""


class SkippedImage(Record):
    """A file or picture that was not written."""

    row: LeftOut
    """Its line."""
    detail: str
    """What is wrong, which may name the file: for the private list only."""


class FrameFindings(Record):
    """What was found in a picture by looking, kept until its file is done: places, and nothing of the text."""

    number: int
    """Place of its file among all, or of the first of its stack."""
    source: str
    """The hidden id of the bytes that were looked at."""
    index: int
    """Its place in what was read of the file."""
    findings: Findings
    """As `MaskResult` has it."""


def worker(options: IntakeOptions, salt: bytes, to: Path, make: MakeToolbox) -> Work:
    """What a worker does with each file."""
    # Pillow itself would refuse smaller pictures than the options allow.
    Image.MAX_IMAGE_PIXELS = max(options.largest, MAX_PIXELS)
    toolbox = make(options)
    convert_file = partial(convert, options=options, salt=salt, to=to, toolbox=toolbox)
    project_stack = partial(project, options=options, salt=salt, to=to, toolbox=toolbox)
    return lambda job: project_stack(job) if job.stack else convert_file(job)


def convert(job: Job, *, options: IntakeOptions, salt: bytes, to: Path, toolbox: Toolbox) -> Iterator[Message]:
    """Write the pictures of a file; yields JSON of a `WrittenImage` or `SkippedImage` for each.

    Where the file ends early, a last `SkippedImage` says so. Before and after a picture is looked at there is a `Heartbeat`,
    since that may take longer than decoding.
    """
    source: str | None = None
    try:
        source = _digest(job.path)
        kind = toolbox.recognise(job.path)
        if kind is None:
            raise ItemError("not-an-image", "no known image format")
        deep_masker = DeepMasker(toolbox.masker, options)
        count, masker = 0, _RememberingMasker(toolbox.masker(), job, hidden_id(salt, "source", source))
        for index, frame in enumerate(toolbox.readers[kind](job.path)):
            count += 1
            if job.stack_index is not None:
                frame = replace(frame, facts=replace(frame.facts, frame=job.stack_index))
            yield _heartbeat(frame, (job.number,), job.size)
            try:
                _check_use(frame, options)
                result = masker.mask(frame, index)
                yield from masker.notes(result, index)
                found = deep_masker.mask(frame, result)
                written = _write(frame, result, found, job, index, source=source, salt=salt, options=options, to=to)
                yield written.model_dump_json()
            except ItemError as error:
                yield _skipped(job, source, index, error.cause, str(error), salt)
            yield Heartbeat((job.number,), job.size)
        if not count:
            raise ItemError("no-picture", f"a file of kind {kind} without a picture")
    except StllavaError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged file does to a decoder is counted, and told in the private list
        yield _skipped(job, source, None, *_cause(error, options), salt)


def project(job: Job, *, options: IntakeOptions, salt: bytes, to: Path, toolbox: Toolbox) -> Iterator[Message]:
    """Write the one picture of a stack's files.

    Yields JSON of a `SkippedImage` for each that cannot be used, then of a `WrittenImage`. The picture's source is the hash of
    the files' hashes in their order. Where the picture itself is kept out, so is each of its files.
    """
    projection: Projection | None = None
    used: list[tuple[Job, str]] = []
    for file in job.tried():
        yield Heartbeat((file.number,), file.size)
        source: str | None = None
        try:
            source = _digest(file.path)
            if projection is None:
                begin = toolbox.projections.get(toolbox.recognise(file.path) or "")
                if begin is None:
                    raise ItemError("changed", "the file is no longer the slice that it was")
                projection = begin()
            projection.add(file.path, off=abs((file.stack_index or 0) - len(job.stack) // 2))
            used.append((file, source))
        except StllavaError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            yield _skipped(file, source, None, *_cause(error, options), salt)
    if projection is None or not used:
        return
    yield Heartbeat(tuple(file.number for file, _ in used), sum(file.size for file, _ in used))
    whole = hashlib.sha256("".join(source for _, source in used).encode()).hexdigest()
    first = min((file for file, _ in used), key=lambda file: file.number)
    try:
        frame = projection.frame(total=len(job.stack))
        yield _heartbeat(frame, tuple(file.number for file, _ in used), 0)
        _check_use(frame, options)
        masker = _RememberingMasker(toolbox.masker(), job, hidden_id(salt, "source", whole))
        result = masker.mask(frame, 0)
        yield from masker.notes(result, 0)
        found = DeepMasker(toolbox.masker, options).mask(frame, result)
        written = _write(frame, result, found, first, 0, source=whole, salt=salt, options=options, to=to)
        yield written.model_copy(update={"files": len(used)}).model_dump_json()
    except StllavaError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        yield _skipped(first, whole, 0, *_cause(error, options), salt)
        for file, source in used:
            if file is not first:
                yield _skipped(file, source, None, *_cause(error, options), salt)


class _RememberingMasker:
    """Looks for text in the frames of one file, but for those whose finds are in the job's notes."""

    def __init__(self, masker: TextMasker, job: Job, source: str) -> None:
        self._masker, self._number, self._source = masker, job.number, source
        notes = map(FrameFindings.model_validate_json, job.notes)
        # A stack that has lost a file since is another picture.
        self._known = {kept.index: kept.findings for kept in notes if kept.source == source}

    def mask(self, frame: Frame, index: int) -> MaskResult:
        """What becomes of the frame at that index."""
        return self._masker.mask(frame, self._known.get(index))

    def notes(self, result: MaskResult, index: int) -> Iterator[Note]:
        """What is to be kept of that; nothing of what was not looked at, or is kept already."""
        if result.findings and index not in self._known:
            note = FrameFindings(number=self._number, source=self._source, index=index, findings=result.findings)
            yield Note(note.model_dump_json())


def _heartbeat(frame: Frame, numbers: tuple[int, ...], size: int) -> Heartbeat:
    looks = 1 if frame.deep is None else 1 + len(VIEWS)
    megapixels = frame.pixels.shape[0] * frame.pixels.shape[1] / 1e6
    return Heartbeat(numbers, size, LOAD_SECONDS + looks * SECONDS_A_MEGAPIXEL * megapixels)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cause(error: Exception, options: IntakeOptions) -> tuple[str, str]:
    """The cause and detail of what kept a file or picture out."""
    if isinstance(error, ItemError):
        return error.cause, str(error)
    if isinstance(error, MemoryError):
        return "too-much-memory", f"needs more than {options.memory} GiB"
    return "unreadable", f"{type(error).__name__}: {error}"


def _skipped(job: Job, source: str | None, index: int | None, cause: str, detail: str, salt: bytes) -> str:
    hidden = None if source is None else hidden_id(salt, "source", source)
    row = LeftOut(number=job.number, source=hidden, frame=index, cause=cause)
    # A file name that is not UTF-8 would not go into JSON.
    return SkippedImage(row=row, detail=detail.encode(errors="backslashreplace").decode()).model_dump_json()


def _check_use(frame: Frame, options: IntakeOptions) -> None:
    """Raise the `ItemError` of a picture that is of no use, before anything is looked for in it."""
    wrong = fault(frame.pixels, options)
    if wrong is not None:
        raise ItemError(wrong, f"{frame.pixels.shape[1]} × {frame.pixels.shape[0]} pixels")


def _write(
    frame: Frame,
    result: MaskResult,
    found: tuple[DeepPixels | None, tuple[Box, ...]],
    job: Job,
    index: int,
    *,
    source: str,
    salt: bytes,
    options: IntakeOptions,
    to: Path,
) -> WrittenImage:
    """Write what a frame became, or raise the `ItemError` that keeps it out; `found` is what `DeepMasker.mask` gave of it."""
    if result.frame is None:
        raise ItemError(TEXT, result.reason)
    if result.boxes and options.text == "quarantine":
        raise ItemError(TEXT, "text was found, and the options leave such pictures out")
    pixels, identity = result.frame.pixels, frame.identity
    pseudonyms = pseudonymise(identity, salt, source=source)
    allowed = allow(result.frame.facts, frame.labels, series=pseudonyms.series)
    facts = allowed.facts
    image = Image.fromarray(pixels)
    data = encoded(pixels, options)
    name = image_id(salt, source, frame=index)
    deep, deep_data = _deep_image(name, *found, level=options.compression)
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
        patient=pseudonyms.patient,
        study=pseudonyms.study,
        series=pseudonyms.series,
        frame=facts.frame,
        done=facts.done,
        masked=tuple((box.left, box.top, box.right, box.bottom) for box in result.boxes),
        content=hashlib.sha256(data).hexdigest(),
        split="",
        interval=None,
        deep=deep,
    )
    line = json.dumps([facts.modality, facts.body_part, facts.view, facts.laterality, facts.done, allowed.labels])
    # A number stands in many a header by chance, and the allow-list has let short ones through only.
    check_clean(re.sub(r"\d+", "", line).encode(), identity.texts, what="the line of a picture")
    check_clean(data, identity.texts, what="a picture")
    check_clean(deep_data, identity.texts, what="the 16-bit pixels of a picture")
    picture = picture_hash(image)
    withheld = {"16-bit pixels": 1} if frame.deep is not None and deep is None else {}
    _put(to / row.path, data)
    if deep is not None:
        _put(to / deep.path, deep_data)
    day = day_number(identity.date)
    return WrittenImage(
        row=row,
        number=job.number,
        index=index,
        digest=pixel_digest(pixels).hex(),
        picture=None if picture is None else f"{picture:x}",
        size=len(data),
        deep_size=None if deep is None else len(deep_data),
        day=None if day is None else day + day_shift(salt, pseudonyms.patient),
        pseudonyms=pseudonyms,
        withheld=dict(sorted({**allowed.dropped, **withheld}.items())),
    )


def _deep_image(name: str, pixels: DeepPixels | None, masked: tuple[Box, ...], *, level: int) -> tuple[DeepImage | None, bytes]:
    """What the set says of a picture's 16-bit pixels, and their file's bytes; None and nothing where there are none."""
    if pixels is None:
        return None, b""
    data = png(pixels.values, level)
    made = DeepImage(
        path=f"{DEEP_FOLDER}/{name[:2]}/{name}.png",
        content=hashlib.sha256(data).hexdigest(),
        offset=pixels.offset,
        step=pixels.step,
        black=pixels.black,
        white=pixels.white,
        masked=tuple((box.left, box.top, box.right, box.bottom) for box in masked),
    )
    return made, data


def _put(path: Path, data: bytes) -> None:
    """Write a picture whole or not at all; unsynced, since a resumed import looks at the sizes of what it finds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    draft.write_bytes(data)
    draft.replace(path)
