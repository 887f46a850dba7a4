"""Reads a DICOM file and gives its pictures: grey or RGB in 8 bits, what may be told of them, and what must not.

    for frame in read_dicom(path, DicomOptions(window="lung", frames="middle")): ...

Reads one file at a time, frame by frame, and writes nothing. Overlays are left out, as planes and as unused high bits.
What is wrong with a file is an `ItemError` whose cause is one of `CAUSES`; its text quotes nothing of the file, since a
name may stand anywhere in it, and pydicom's warnings and log, which do quote, are held back. Needs the extra `dicom`.
"""

import errno
import logging
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stllava.config.intake import FrameChoice, WindowChoice
from stllava.data.images import MAX_PIXELS
from stllava.errors import ItemError, StllavaError
from stllava.intake.readers.deep import deep_pixels
from stllava.intake.readers.dicom import windows
from stllava.intake.readers.dicom.header import faults, read_burned, read_facts, read_identity
from stllava.intake.readers.dicom.pixels import StoredPixels, check_kind, decode, encoded, paint, shown_in
from stllava.intake.readers.frame import DeepPixels, Facts, Frame

if TYPE_CHECKING:
    from pydicom import Dataset

CAUSES = ("empty", "not-dicom", "no-picture", "too-large", "unsupported", "truncated", "damaged", "unreadable")

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_NEEDED = ("rows", "columns", "samples_per_pixel", "photometric_interpretation", "bits_allocated")
_DEFERRED = 1 << 20
_INFLATED = 1 << 29
_DEFLATE = "1.2.840.10008.1.2.1.99"
_LABELS = {"1.2.840.10008.5.1.4.1.1.66.4": "labels", "1.2.840.10008.5.1.4.1.1.66.7": "labels"}
NO_PICTURES = {**_LABELS, "1.2.840.10008.5.1.4.1.1.481.2": "a grid of doses"}

Finished = tuple[NDArray[np.uint8], Facts, DeepPixels | None]
"""An 8-bit picture, what may be told of it, and its 16-bit pixels where they are kept."""


@dataclass(frozen=True)
class DicomOptions:
    """Which frames of a file become pictures, and how values become greys."""

    window: WindowChoice = "auto"
    """auto: the file's own, else for CT by body part, else all values; file: never by body part; or a preset for CT."""
    frames: FrameChoice = "all"
    """all, the middle one, every `step`-th one, or the maximum intensity projection of all."""
    step: int = 1
    """Of `every`: 1 is all frames, 2 is every other one, from the first."""
    max_pixels: int = MAX_PIXELS
    """A frame with more is refused before it is decoded."""
    keep_16_bit: bool = False
    """Whether pictures of more than 8 bits keep their 16-bit pixels, too."""


def read_dicom(path: Path, options: DicomOptions) -> Iterator[Frame]:
    """The chosen pictures of one file in order; raises `ItemError` for a bad file, `StllavaError` without pydicom."""
    if options.step < 1:
        raise StllavaError(f"a step of {options.step}", expected="1 or more", remedy="Set step to 1 or more.")
    with guarded():
        picture = open_picture(path, options)
        identity = read_identity(picture.data, path)
        burned = read_burned(picture.data)
    wanted = _wanted(picture.frames, options)
    if options.frames == "mip" and picture.frames > 1:
        with guarded():
            pixels, facts, deep = _project(picture, path, options)
        yield Frame(pixels, facts, identity, burned, deep=deep)
        return
    stored = encoded(picture, path, wanted)
    while True:
        with guarded():
            if (indexed := next(stored, None)) is None:
                return
            index, source = indexed
            pixels, facts, deep = finish(picture, decode(picture, source), index, options=options)
        yield Frame(pixels, facts, identity, burned, deep=deep)


@contextmanager
def guarded() -> Iterator[None]:
    """Hold back pydicom's warnings and log, and turn what it raises at a bad file into an `ItemError` without quotes."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ItemError, StllavaError):
        raise
    except OSError as error:
        if error.errno in (None, errno.EINVAL):
            # Not the disk's: a plug-in's word for bad data, or a place before the file's beginning.
            raise ItemError("damaged", "the file breaks DICOM's rules where it is read: OSError") from None
        raise ItemError("unreadable", f"the file cannot be read: {type(error).__name__}, errno {error.errno}") from None
    except faults() as error:
        raise ItemError("damaged", f"the file breaks DICOM's rules where it is read: {type(error).__name__}") from None
    finally:
        log.setLevel(level)


def open_picture(path: Path, options: DicomOptions) -> StoredPixels:
    data = read_data(path)
    keyword = next((name for name in _PIXELS if name in data), None)
    named = str(data.get("SOPClassUID", ""))
    if keyword is None:
        raise ItemError("no-picture", "the DICOM object holds no pixels")
    if named in NO_PICTURES:
        raise ItemError("no-picture", f"the DICOM object holds {NO_PICTURES[named]}, no picture")
    implicit, little = data.original_encoding
    from pydicom.pixels.utils import as_pixel_options

    given = dict(as_pixel_options(data))
    if missing := [name for name in _NEEDED if given.get(name) is None]:
        raise ItemError("damaged", f"the file holds pixels and does not say their {', '.join(missing).replace('_', ' ')}")
    rows, columns, samples = (int(given[name]) for name in ("rows", "columns", "samples_per_pixel"))
    if rows * columns > options.max_pixels:
        raise ItemError("too-large", f"a frame announces {columns} × {rows} pixels, more than {options.max_pixels:,}")
    if rows < 1 or columns < 1 or given["number_of_frames"] < 1:
        raise ItemError("damaged", f"a frame announces {columns} × {rows} pixels, {given['number_of_frames']} times")
    meta = data.file_meta
    # A file without a header is what its own bytes look like.
    bare = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
    shift = 0
    if keyword == "PixelData":
        high = int(data.get("HighBit", given["bits_stored"] - 1))
        if given["bits_stored"] <= high < given["bits_allocated"]:
            shift = high + 1 - given["bits_stored"]
    picture = StoredPixels(
        data=data,
        keyword=keyword,
        little=bool(little),
        syntax=str(meta.get("TransferSyntaxUID", bare)),
        rows=rows,
        columns=columns,
        samples=samples,
        colour=str(given["photometric_interpretation"]).strip().upper(),
        frames=int(given["number_of_frames"]),
        options=given,
        shift=shift,
    )
    check_kind(picture)
    return picture


def read_data(path: Path, tags: Sequence[str] | None = None) -> "Dataset":
    """The data set, values over a megabyte left in the file, or only what `tags` name of all before the pixels.

    Of a file without the header only if it names its class. Raises as `guarded` has it.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise StllavaError(
            "a DICOM file, and pydicom is not installed",
            expected="pydicom and its pixel plug-ins",
            remedy="pip install 'stllava[dicom]'",
        ) from None
    if not path.is_file():
        raise ItemError("unreadable", "this is not a file")
    if path.stat().st_size == 0:
        raise ItemError("empty", "the file has no bytes")
    with path.open("rb") as file:
        head = file.read(1 << 16)
        if _DEFLATE.encode() in head:
            _check_inflated(file, head)
    if tags is None:
        read = partial(pydicom.dcmread, path, defer_size=_DEFERRED)
    else:
        read = partial(pydicom.dcmread, path, stop_before_pixels=True, specific_tags=[*tags])
    try:
        return read()
    except InvalidDicomError:
        data = read(force=True)
        if not re.fullmatch(r"[0-9.]+", str(data.get("SOPClassUID", ""))):
            raise ItemError("not-dicom", "the file has no DICOM header and names no class of object") from None
        return data


def _check_inflated(file: BinaryIO, head: bytes) -> None:
    """Refuse a deflated file that grows beyond all bounds: pydicom inflates it in one go."""
    if head[128:138] != b"DICM\2\0\0\0UL":
        raise ItemError("damaged", "the header of a deflated file does not say where it ends")
    file.seek(144 + int.from_bytes(head[140:144], "little"))
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflate.eof and (chunk := inflate.unconsumed_tail or file.read(1 << 16)):
        size += len(inflate.decompress(chunk, 1 << 20))
        if size > _INFLATED:
            raise ItemError("too-large", f"the file inflates to more than {_INFLATED:,} bytes")


def _wanted(frames: int, options: DicomOptions) -> range:
    if options.frames == "middle":
        return range(frames // 2, frames // 2 + 1)
    return range(0, frames, options.step if options.frames == "every" else 1)


def _project(picture: StoredPixels, path: Path, options: DicomOptions) -> Finished:
    """The greatest measured value at every place, as one picture."""
    check_grey(picture)
    greatest: NDArray[np.float64] | None = None
    for index, source in encoded(picture, path, range(picture.frames)):
        measured, _ = measured_values(picture, source, index)
        greatest = measured if greatest is None else np.fmax(greatest, measured, out=greatest)
    assert greatest is not None  # There is at least one frame, or encoded has raised.
    pixels, facts, deep = finish(picture, greatest, picture.frames // 2, options=options, projected=True)
    return pixels, replace(facts, frame=None, done=(f"maximum of {picture.frames} frames", *facts.done)), deep


def check_grey(picture: StoredPixels) -> None:
    """Raise `ItemError` for colours."""
    if picture.samples == 3 or picture.colour == "PALETTE COLOR":
        raise ItemError("unsupported", "colours have no maximum intensity projection")


def measured_values(picture: StoredPixels, source: bytes, index: int) -> tuple[NDArray[np.float64], str]:
    """The measured values of a frame, without end below 0 where there is no picture, and the name of the measure."""
    stored = decode(picture, source)
    measure, name = windows.modality(picture.data, index, little=picture.little)
    return np.where(shown_in(picture, stored), measure(stored).astype(np.float64), -np.inf), name


def finish(
    picture: StoredPixels, stored: windows.Values, index: int, *, options: DicomOptions, projected: bool = False
) -> Finished:
    """Stored (or `projected`: measured) values as an 8-bit picture, what may be told of it, and the 16-bit pixels to keep."""
    data, little = picture.data, picture.little
    facts = read_facts(data, index, frames=picture.frames)
    tags = data.keys()
    left_out = ("overlays left out",) if any(0x6000 <= tag.group <= 0x60FF for tag in tags) else ()
    if picture.colour == "PALETTE COLOR":
        return paint(picture, stored), replace(facts, done=("palette to RGB", *left_out)), None
    if picture.samples == 3:
        white = (1 << int(picture.options["bits_stored"])) - 1
        done = () if picture.colour == "RGB" else (f"{picture.colour} to RGB",)
        eight = stored if stored.dtype == np.uint8 and white == 255 else windows.to_bytes(np.clip(stored / white, 0, 1))
        return eight.astype(np.uint8, copy=False), replace(facts, done=(*done, *left_out)), None
    measure, measured_name = windows.modality(data, index, little=little)
    shown = np.isfinite(stored) if projected else shown_in(picture, stored)

    def keep(values: windows.Values) -> windows.Values:
        return values

    own = windows.voi(data, index, little=little)
    if isinstance(own, windows.Window) and windows.shows_nothing(own, measure(_storable(picture, stored))):
        own, left_out = None, ("the file's window shows nothing", *left_out)
    if projected:
        measure = keep
    hounsfield = measured_name == "rescaled to HU"
    choice, choice_name = windows.choose(options.window, own, hounsfield=hounsfield, body_part=facts.body_part)
    if choice is None and stored.dtype == np.uint8 and not measured_name and picture.options["bits_stored"] == 8:
        choice = windows.Window(127.5, 255, "LINEAR_EXACT")
    elif choice is None:
        choice = windows.own_range(measure(stored), shown)
        low, high = choice.centre - choice.width / 2, choice.centre + choice.width / 2
        choice_name = f"window of all values ({low:g} to {high:g})"
    inverted = picture.colour == "MONOCHROME1" or data.get("PresentationLUTShape") == "INVERSE"
    pixels = windows.to_grey(stored, measure, choice=choice, inverted=inverted)
    if not shown.all():
        pixels[~shown] = 0
    done = (measured_name, choice_name, "inverted" if inverted else "", *left_out)
    deep = None
    if options.keep_16_bit and (picture.keyword != "PixelData" or picture.options["bits_stored"] > 8):
        ends = windows.ends(choice)
        darker = inverted != windows.descends(choice)
        deep = deep_pixels(measure(stored), black=ends[0], white=ends[1], inverted=darker, shown=shown)
    return pixels, replace(facts, done=tuple(name for name in done if name)), deep


def _storable(picture: StoredPixels, stored: windows.Values) -> windows.Values:
    """The smallest and the greatest value that a pixel can have, and all between where a table may put them in any order.

    Of fractions, which have no end, those that the frame has.
    """
    if picture.keyword != "PixelData":
        finite = stored[np.isfinite(stored)]
        return np.array([finite.min(), finite.max()]) if finite.size else np.zeros(2)
    values = 1 << int(picture.options["bits_stored"])
    low = -(values // 2) if picture.options["pixel_representation"] else 0
    if "ModalityLUTSequence" in picture.data and values <= 1 << 16:
        return np.arange(low, low + values)
    return np.array([low, low + values - 1])
