"""The last check before anything is written: no text of a source stands in it, and a picture holds nothing but pixels.

Reads and writes nothing. It guards against mistakes of the allow-list and of the writers; a name that is no text of the
source, such as one in the pixels, it cannot know.
"""

import re
from collections.abc import Iterable

from stllava.errors import ItemError
from stllava.intake.deidentify.spelling import folded
from stllava.intake.deidentify.vocabulary import BODY_PARTS, DONE_WORDS, MODALITIES, OWN_WORDS, VIEWS

SHORTEST = 4
"""Texts and names of fewer letters are not looked for: they stand in any file by chance."""

_MEASURE = re.compile(r"[-+]?(\d{1,5}|\d*\.\d*(e[-+]?\d+)?)")
_KNOWN = BODY_PARTS | DONE_WORDS | OWN_WORDS | {word.lower() for word in MODALITIES | VIEWS}
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


def leaks(data: bytes, texts: Iterable[str]) -> int:
    """How many of a source's texts, or of the parts of its names, stand in the data as whole words, in any usual encoding.

    Known vocabulary and what is shorter than `SHORTEST` is passed over. For text files; `check_picture` is for pictures.
    """
    views = [data.decode("utf-8", "replace"), data.decode("latin-1")]
    if b"\0" in data:
        views += [data[start:].decode(encoding, "replace") for start in (0, 1) for encoding in ("utf-16-le", "utf-16-be")]
    views += [_unescaped(view) for view in views if "\\u" in view]
    plain = [folded(view) for view in views]
    return sum(any(_stands(needle, view) for view in plain) for needle in needles(texts))


def _unescaped(text: str) -> str:
    """The text with JSON's escapes of letters read, pairs for those beyond 16 bits too."""
    read = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    return read.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def needles(texts: Iterable[str]) -> frozenset[str]:
    """What to look for: each text whole, and of texts in DICOM's form of names (`DOE^JOHN`) each part and word.

    Measures, which are fractions and numbers of up to five digits, are not: widths and windows are such.
    """
    candidates: set[str] = set()
    for text in texts:
        candidates.add(folded(text))
        if "^" in text:
            parts = folded(re.sub(r"[\^=]", "\n", text).replace("\n", " \n "))
            candidates.update(parts.split())
            candidates.add(folded(re.sub(r"[\^=]", " ", text)))
    return frozenset(
        text for text in candidates if len(text) >= SHORTEST and text not in _KNOWN and _MEASURE.fullmatch(text) is None
    )


def _stands(needle: str, view: str) -> bool:
    at = view.find(needle)
    while at >= 0:
        end = at + len(needle)
        before, after = view[at - 1 : at] if at else "", view[end : end + 1]
        if not (before.isalnum() and needle[0].isalnum()) and not (after.isalnum() and needle[-1].isalnum()):
            return True
        at = view.find(needle, at + 1)
    return False


def check_clean(data: bytes, texts: Iterable[str], *, what: str) -> None:
    """Raise an `ItemError` of cause identity when data to be written holds a text of its source; pictures by their parts."""
    if data.startswith((b"\x89PNG", b"\xff\xd8")):
        check_picture(data, what=what)
        return
    leaked = leaks(data, texts)
    if leaked:
        raise ItemError("identity", f"{what} would hold {leaked} texts of its source")


def check_picture(data: bytes, *, what: str) -> None:
    """Raise an `ItemError` of cause identity unless a PNG or JPEG holds nothing but pixels: no text, profile or rest."""
    foreign = _png_parts(data) if data.startswith(b"\x89PNG") else _jpeg_parts(data)
    if foreign:
        raise ItemError("identity", f"{what} would hold more than pixels: {', '.join(foreign)}")


def _png_parts(data: bytes) -> list[str]:
    """The chunks that are not pixels, and what follows the end."""
    at, foreign = 8, []
    while at + 12 <= len(data):
        chunk = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if chunk not in _PNG_CHUNKS:
            foreign.append("a chunk of another kind")
        if chunk == b"IEND":
            break
    return foreign + (["bytes behind the end"] if at != len(data) else [])


def _jpeg_parts(data: bytes) -> list[str]:
    """The segments before the pixels that are neither tables nor JFIF's own 16 bytes, and what follows the end."""
    at, foreign = 2, []
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFE or (0xE0 <= marker <= 0xEF and not (marker == 0xE0 and size == 16)):
            foreign.append("a segment of another kind")
        at += 2 + size
    # Entropy-coded data never holds FF D9: a second one would be the end of something hidden behind the first.
    end = data.find(b"\xff\xd9", at)
    return foreign + (["bytes behind the end"] if end != len(data) - 2 else [])
