"""Reads ordinary pictures (JPEG, PNG, WebP, BMP, GIF) and every text that rides along in them; writes nothing.

Pixels come by the rules of `data/images.open_image`: only known decoders run, announced bombs are refused, the EXIF
orientation is applied. No message of an error holds a path or a text of the file, for these may name a patient.
"""

import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from stllava.data.images import FORMATS, open_image
from stllava.errors import ItemError
from stllava.intake.readers.frame import Facts, Frame, Identity

CAUSES = {
    "missing": "the file does not exist",
    "empty": "the file has no bytes",
    "truncated": "the picture is cut off or its header damaged",
    "not-an-image": "the content is no picture of a known format",
    "too-large": "its header announces more pixels than are read",
    "outside-root": "the file lies elsewhere",
    "unreadable": "the picture cannot be decoded",
}
"""What each cause of `open_image` says here, without the name of the file."""

METADATA_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    struct.error,
)
"""What Pillow raises of damaged metadata."""

_GREY = frozenset({"1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_CHUNK = 1 << 20
_WINDOWS_TEXTS = range(0x9C9B, 0x9CA0)
_RUN = re.compile(r"[^\x00-\x1f\x7f-\x9f\ufffd]{3,}")
_PLAIN = re.compile(r"[A-Za-z]{2}")
_WIDE = (re.compile(rb"(?:[\x20-\x7e\xa0-\xff]\x00){3,}"), re.compile(rb"(?:\x00[\x20-\x7e\xa0-\xff]){3,}"))
_MARKED_UP = re.compile(r">([^<>]+)<|=\s*\"([^\"]+)\"|=\s*'([^']+)'")


def read_photograph(path: Path) -> Iterator[Frame]:
    """The picture (of an animation the first), [H, W] if it is grey and [H, W, 3] else; raises `ItemError`."""
    pixels = safely_opened(path)
    grey, texts, done = look_into(path)
    values = np.asarray(pixels.getchannel(0) if grey else pixels)
    yield Frame(pixels=values, facts=Facts(done=done), identity=Identity(texts=texts | name_texts(path)))


def safely_opened(path: Path) -> Image.Image:
    """`open_image` of a file wherever it lies; its errors without the file's name."""
    try:
        real = path.resolve()
        return open_image(real.parent, real.name)
    except ItemError as error:
        raise ItemError(error.cause, CAUSES[error.cause]) from None
    except (OSError, RuntimeError) as error:
        raise ItemError("unreadable", f"the file cannot be reached ({type(error).__name__})") from None


def name_texts(path: Path) -> frozenset[str]:
    """The file's name with and without what follows the first dot."""
    return frozenset({path.name, path.name.split(".")[0], path.stem} - {""})


def look_into(path: Path) -> tuple[bool, frozenset[str], tuple[str, ...]]:
    """Whether a picture is grey, every text in it, and what `open_image` does to it; its pixels are not decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
                texts = {*_texts(image), *_blocks(file, image.format)}
                done = tuple(_done(image))
                return image.mode in _GREY, frozenset(texts), done
        except METADATA_ERRORS as error:
            raise ItemError("unreadable", f"the texts in the picture cannot be read ({type(error).__name__})") from None


_INNER_TABLES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)


def texts_in(value: object) -> Iterator[str]:
    """Every text in a value of metadata: strings, printable runs of bytes in UTF-8, Latin-1 or UTF-16, parts of mark-up."""
    if isinstance(value, str):
        yield from (text for part in re.split(r"[\x00-\x1f]+", value) if (text := part.strip()))
        yield from (text for found in _MARKED_UP.findall(value) for part in found if (text := part.strip()))
    elif isinstance(value, bytes):
        for code in ("utf-8", "latin-1"):
            text = value.decode(code, "replace")
            runs = [*_RUN.findall(text), *(part for found in _MARKED_UP.findall(text) for part in found)]
            # Any byte is a letter in Latin-1: what has no two plain ones is numbers.
            yield from (run.strip() for run in runs if run.strip() and (code == "utf-8" or _PLAIN.search(run)))
        for pattern, code in zip(_WIDE, ("utf-16-le", "utf-16-be"), strict=True):
            yield from (run.decode(code, "replace").strip() for run in pattern.findall(value))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_in(inner)
            # A PNG's or XMP's keyword is free text as well.
            yield from texts_in(key)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from texts_in(inner)


def exif_texts(exif: Image.Exif) -> Iterator[str]:
    """Every text of the EXIF tables, the inner ones included."""
    tables = [dict(exif), *(_inner_table(exif, table) for table in _INNER_TABLES)]
    for table in tables:
        for tag, value in table.items():
            if tag in _WINDOWS_TEXTS and isinstance(value, bytes):
                yield from texts_in(value.decode("utf-16-le", "replace"))
            else:
                yield from texts_in(value)


def _inner_table(exif: Image.Exif, table: ExifTags.IFD) -> dict[int, object]:
    """One of the tables that EXIF points to; empty where it points to none, for which Pillow 12.3 has an error."""
    try:
        return exif.get_ifd(table)
    except KeyError:
        return {}


def _exif(image: Image.Image) -> Image.Exif:
    """The EXIF tables; of a PNG those before its pixels, for Pillow's own way decodes it to look behind them."""
    return Image.Image.getexif(image) if isinstance(image, PngImageFile) else image.getexif()


def _texts(image: Image.Image) -> Iterator[str]:
    yield from texts_in({key: value for key, value in image.info.items() if key != "icc_profile"})
    yield from exif_texts(_exif(image))
    if isinstance(image, JpegImageFile):
        # Pillow keeps every segment here, those it does not understand too.
        yield from texts_in([data for _, data in image.applist])


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation of a picture that is not yet decoded says that it lies or is mirrored."""
    return _exif(image).get(ExifTags.Base.Orientation, 1) in range(2, 9)


def _done(image: Image.Image) -> Iterator[str]:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        yield f"first of {frames} frames"
    if is_turned(image):
        yield "turned upright"
    if image.mode not in ("RGB", "L"):
        yield f"from mode {image.mode}"
    if image.has_transparency_data:
        yield "laid on white"


def _blocks(file: BinaryIO, format_name: str | None) -> Iterator[str]:
    """Texts in blocks that may follow the pixels, which Pillow reads only as it decodes."""
    if format_name == "PNG":
        yield from _png_texts(file)
    elif format_name == "GIF":
        yield from _gif_texts(file)


def _png_texts(file: BinaryIO) -> Iterator[str]:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"fdAT", b"PLTE"):
            file.seek(length + 4, 1)
            continue
        data = file.read(min(length, _CHUNK))
        file.seek(length - len(data) + 4, 1)
        yield from texts_in(data)
        if kind in (b"zTXt", b"iTXt"):
            # The packed part begins behind one to four zero bytes; a wrong start does not unpack.
            for at in (found.end() for found in re.finditer(rb"\x00", data[:1024])):
                for begin in (at, at + 1):
                    yield from texts_in(_unpacked(data[begin:]))
        if kind == b"IEND":
            return


def _unpacked(data: bytes) -> bytes:
    """Up to a megabyte of a zlib stream; empty when it is none."""
    try:
        return zlib.decompressobj().decompress(data, _CHUNK)
    except zlib.error:
        return b""


def _gif_texts(file: BinaryIO) -> Iterator[str]:
    file.seek(10)
    flags = file.read(3)[:1]
    if flags and flags[0] & 0x80:
        file.seek(3 << (flags[0] & 7) + 1, 1)
    while (mark := file.read(1)) in (b"!", b","):
        if mark == b"!":
            file.seek(1, 1)
            yield from texts_in(b"".join(_sub_blocks(file)))
            continue
        flags = file.read(9)[8:]
        if flags and flags[0] & 0x80:
            file.seek(3 << (flags[0] & 7) + 1, 1)
        file.seek(1, 1)
        for _ in _sub_blocks(file):
            pass


def _sub_blocks(file: BinaryIO) -> Iterator[bytes]:
    while (length := file.read(1)) not in (b"", b"\0"):
        yield file.read(length[0])
