"""Tells what a file is by its first bytes, never by its name: reads up to a megabyte of headers, writes nothing.

recognise(Path("export/IM0001"))     # "dicom", "nifti", "tiff", "slide", "photograph", or None of anything else
"""

import gzip
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from stllava.data.images import MAX_PIXELS
from stllava.errors import ItemError
from stllava.intake.readers.frame import FrameKind

_HEAD = 1024
_NIFTI_HEAD = 544
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_VALUE_TYPES = frozenset(
    b"AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_LONG_TYPES = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_FIRST_GROUPS = frozenset({0x0002, 0x0008})
_PAGES = 16
_ENTRIES = 4096
_WIDTH, _HEIGHT, _DESCRIPTION, _TILE_WIDTH, _TILE_HEIGHT, _SUB_PAGES = 256, 257, 270, 322, 323, 330
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}
_SLIDE_SIDE = 4096
_SLIDE_WORDS = (b"Aperio", b"<PhilipsRawData", b"<OME", b"Hamamatsu", b"Ventana")


def recognise(path: Path) -> FrameKind | None:
    """The kind of a file's content; None of what is no image; `ItemError` when it is no file or cannot be read.

    A deep PNG is of the kind "tiff", for both are read alike. A DICOM file may carry a TIFF's mark in its preamble and
    stays DICOM. The `.img` file of a NIfTI pair is bare numbers, hence None; its `.hdr` file stands for both.
    """
    try:
        status = path.stat()
        # Opening a pipe or a device could wait forever.
        if not stat.S_ISREG(status.st_mode):
            raise ItemError("unreadable", "it is a folder, pipe, socket or device, not a file")
        with path.open("rb") as file:
            head = file.read(_HEAD)
            if head[128:132] == b"DICM":
                return "dicom"
            if head.startswith(_TIFF_MARKS):
                return "slide" if _is_slide(file, head) else "tiff"
    except FileNotFoundError:
        raise ItemError("missing", "the file does not exist, or is a link to nothing") from None
    except (OSError, ValueError) as error:
        raise ItemError("unreadable", f"the file cannot be opened ({type(error).__name__})") from None
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "tiff" if head[24:25] == b"\x10" else "photograph"
    if _is_photograph(head):
        return "photograph"
    if is_nifti(opened(path, head)):
        return "nifti"
    return "dicom" if _is_bare_dicom(head, status.st_size) else None


def opened(path: Path, head: bytes) -> bytes:
    """The first bytes of what a gzip file holds, or `head` of any other file; empty when it cannot be unpacked."""
    if not head.startswith(b"\x1f\x8b"):
        return head
    try:
        with gzip.open(path) as file:
            return file.read(_NIFTI_HEAD)
    except (OSError, EOFError, zlib.error):
        return b""


def is_nifti(head: bytes) -> bool:
    """Whether a file of NIfTI 1 or 2 begins so, or one of Analyze 7.5, which the reader refuses for its unknown sides."""
    if head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return head[344:348] in (b"n+1\0", b"ni1\0") or (len(head) == 348 and head[38:39] == b"r")
    return head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and head[4:8] in (b"n+2\0", b"ni2\0")


def _is_photograph(head: bytes) -> bool:
    if head.startswith((b"\xff\xd8\xff", b"GIF87a", b"GIF89a")):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    return head[:2] == b"BM" and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS


def _is_bare_dicom(head: bytes, size: int) -> bool:
    """Whether DICOM elements begin at once, without preamble: the first three (or all there are) must make sense."""
    for order in "<>":
        at, last, seen = 0, -1, 0
        while seen < 3 and at + 8 <= len(head):
            step = _element(head, at, order)
            if step is None:
                break
            tag, end = step
            if tag <= last or end > size or (seen == 0 and tag >> 16 not in _FIRST_GROUPS):
                break
            at, last, seen = end, tag, seen + 1
            if at == size:
                return True
        else:
            if seen:
                return True
    return False


def _element(head: bytes, at: int, order: str) -> tuple[int, int] | None:
    """Tag and end of the DICOM element that begins at `at`, by explicit or else implicit types; None of anything else."""
    group, element, kind, short = struct.unpack_from(f"{order}HH2sH", head, at)
    if kind in _LONG_TYPES:
        if at + 12 > len(head):
            return None
        length, begin = struct.unpack_from(f"{order}I", head, at + 8)[0], at + 12
    elif kind in _VALUE_TYPES:
        length, begin = short, at + 8
    else:
        length, begin = struct.unpack_from(f"{order}I", head, at + 4)[0], at + 8
    if length == 0xFFFFFFFF:
        length = 0
    return None if length % 2 else (group << 16 | element, begin + length)


@dataclass(frozen=True)
class _Page:
    """What tells whether a TIFF page belongs to a slide."""

    width: int
    height: int
    tiled: bool
    levels: bool
    description: bytes


def _is_slide(file: BinaryIO, head: bytes) -> bool:
    """Whether a TIFF must be read by tiles: too large for one picture, of a slide scanner, or a pyramid of tiles."""
    pages = [*_pages(file, head)]
    if not pages:
        return False
    first = pages[0]
    if first.width * first.height > MAX_PIXELS or any(word in first.description for word in _SLIDE_WORDS[:2]):
        return True
    if not first.tiled:
        return False
    smaller = any(page.tiled and page.width < first.width and page.height < first.height for page in pages[1:])
    named = any(word in first.description for word in _SLIDE_WORDS)
    return smaller or first.levels or named or max(first.width, first.height) > _SLIDE_SIDE


def _pages(file: BinaryIO, head: bytes) -> Iterator[_Page]:
    """The first pages of a TIFF or BigTIFF as far as its tables can be read."""
    order, big = "<" if head[:2] == b"II" else ">", b"+" in head[2:4]
    count, entry, word = (f"{order}Q", 20, f"{order}Q") if big else (f"{order}H", 12, f"{order}I")
    at, seen = _number(head[8:16] if big else head[4:8], word), set[int]()
    while at and at not in seen and len(seen) < _PAGES:
        seen.add(at)
        file.seek(at)
        entries = _number(file.read(struct.calcsize(count)), count)
        if not 0 < entries <= _ENTRIES:
            return
        table = file.read(entries * entry)
        at = _number(file.read(struct.calcsize(word)), word)
        yield _page(file, table, order=order, word=word, entry=entry)


def _page(file: BinaryIO, table: bytes, *, order: str, word: str, entry: int) -> _Page:
    """One page's table, [entries × entry bytes]."""
    values, description = dict[int, int](), b""
    wide = struct.calcsize(word)
    for at in range(0, len(table) - entry + 1, entry):
        tag, kind = struct.unpack_from(f"{order}HH", table, at)
        length, cell = _number(table[at + 4 : at + 4 + wide], word), table[at + 4 + wide : at + entry]
        if tag == _DESCRIPTION:
            if length > wide:
                back = file.tell()
                file.seek(_number(cell, word))
                description = file.read(min(length, _HEAD))
                file.seek(back)
            else:
                description = cell
        elif tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _SUB_PAGES):
            size = _SIZES.get(kind, 0)
            values[tag] = int.from_bytes(cell[: min(size, wide)], "little" if order == "<" else "big")
    return _Page(values.get(_WIDTH, 0), values.get(_HEIGHT, 0), _TILE_WIDTH in values, _SUB_PAGES in values, description)


def _number(data: bytes, form: str) -> int:
    """The whole number that `data` holds; 0 where it is cut off."""
    return int(struct.unpack(form, data)[0]) if len(data) == struct.calcsize(form) else 0
