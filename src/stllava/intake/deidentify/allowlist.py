"""Identities stay behind: salted ids, intervals for dates, an allow-list for facts, and the check of what is written.

Reads and writes the salt, a file of 32 random bytes that stays with the user; without it nobody can link an id back or
make the same ids again. Yardstick: the Basic Application Level Confidentiality Profile of DICOM PS3.15, annex E. It lists
attributes to remove; here everything is removed but an allow-list, which is stricter, and of which is kept:

- UIDs, patient and accession numbers: none; ids are HMAC-SHA256 under the salt, so they cannot be guessed from a list of names.
- Dates and times: none; whole days since the patient's first study (Retain Longitudinal Temporal Information With Modified
  Dates Option). Sex, age, device, institution and people: none.
- Descriptors: none as free text (no Retain option is used); a modality, body part, view or label passes only where its value
  stands in a vocabulary or is a short number, whatever attribute it came from.
- Pixels: burned-in text is `burned.py`'s (Clean Pixel Data Option). Faces that a head volume would show are not removed
  (Clean Recognizable Visual Features Option is not met).
"""

import hashlib
import hmac
import json
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from stllava.errors import ItemError, StllavaError
from stllava.intake.deidentify.vocabulary import BODY_PARTS, DONE_WORDS, LABELS, LATERALITIES, MODALITIES, OWN_WORDS, VIEWS
from stllava.intake.readers.frame import Facts

SALT_BYTES = 32
SHORTEST = 4
"""Texts and names of fewer letters are not looked for: they stand in any file by chance."""
MAX_FRAMES = 1_000_000
SHIFT_DAYS = 1 << 20

_HIDDEN = re.compile(r"[0-9a-f]{16}")
_DAY = re.compile(r"(\d{4})([-./ ]?)(\d{2})\2(\d{2})(?:[T ]?\d{2}.*)?", re.ASCII)
_NEVER = date(1900, 1, 1)
"""What programs write, or days before it, where they take the day away."""
_DONE = re.compile(r"[A-Za-z0-9 .,:;()/%×+'_-]{1,120}")
_WORD = re.compile(r"[^\W\d_]+")
_NUMBER = re.compile(r"\d[\d.]*")
_SHORT_NUMBER = re.compile(r"\d{1,5}(\.\d{0,9})?")
_MEASURE = re.compile(r"[-+]?(\d{1,5}|\d*\.\d*(e[-+]?\d+)?)")
_KNOWN = BODY_PARTS | DONE_WORDS | OWN_WORDS | {word.lower() for word in MODALITIES | VIEWS}
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})


def open_salt(path: Path, *, output: Path) -> bytes:
    """The salt, made at the first call; refused inside the output, when others may read it, or when it is no salt."""
    if path.resolve().is_relative_to(output.resolve()):
        raise StllavaError(
            f"the salt {path} lies inside the output {output}",
            expected="a place of your own: who has both can link ids back to patients",
            remedy="Name a file outside of the output.",
        )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_salt(path)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise StllavaError(
            f"the salt {path} may be read by others (mode {mode:03o})", expected="mode 600", remedy=f"Run `chmod 600 {path}`."
        )
    salt = path.read_bytes()
    if len(salt) != SALT_BYTES:
        raise StllavaError(
            f"{path} has {len(salt)} bytes",
            expected=f"a salt of {SALT_BYTES} bytes",
            remedy="Restore it from a copy, or name a new file: all ids will then differ from earlier imports.",
        )
    return salt


def _make_salt(path: Path) -> None:
    """Write a new salt; of two processes that do so at once, the first one's stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SALT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()


def hidden_id(salt: bytes, *parts: str | int) -> str:
    """Sixteen hexadecimal digits of the HMAC-SHA256 of the parts' JSON under the salt."""
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()[:16]


def image_id(salt: bytes, source: str, *, frame: int | None) -> str:
    """Hidden id of one picture: of the source's content hash and its place in it."""
    return hidden_id(salt, "image", source, -1 if frame is None else frame)


def _plain(text: str) -> str:
    return " ".join(text.replace("\0", " ").casefold().split())


def plain_day(text: str) -> str:
    """A day as YYYYMMDD, however its parts are divided and whatever time follows; empty of what is no day of an examination."""
    match = _DAY.fullmatch(text.strip("\0 "))
    try:
        day = None if match is None else date(int(match[1]), int(match[3]), int(match[4]))
    except ValueError:
        return ""
    return day.isoformat().replace("-", "") if day is not None and day > _NEVER else ""


def day_number(text: str) -> int | None:
    """A day (YYYYMMDD) as a number of days; None of what is no day."""
    day = plain_day(text)
    return date(int(day[:4]), int(day[4:6]), int(day[6:])).toordinal() if day else None


def day_shift(salt: bytes, patient: str) -> int:
    """Days by which the days of a hidden patient are moved until the whole set is known: a secret of his own."""
    return int(hidden_id(salt, "day", patient), 16) % SHIFT_DAYS


@dataclass(frozen=True)
class Allowed:
    """What may be written of a picture, and how often what was dropped, by attribute (never by value)."""

    facts: Facts
    labels: dict[str, str]
    dropped: Counter[str]


def allow(facts: Facts, labels: Mapping[str, str], *, series: str = "") -> Allowed:
    """Only facts and labels whose values stand in a vocabulary or are short numbers; `series` is the hidden id to set."""
    dropped: Counter[str] = Counter()

    def known(name: str, value: str, vocabulary: frozenset[str]) -> str:
        if value and value not in vocabulary:
            dropped[name] += 1
            return ""
        return value

    hidden = series or facts.series
    if hidden and not _HIDDEN.fullmatch(hidden):
        dropped["series"] += 1
        hidden = ""
    frame = facts.frame
    if frame is not None and not 0 <= frame < MAX_FRAMES:
        dropped["frame"] += 1
        frame = None
    done = tuple(step for step in facts.done if _harmless(step))
    dropped["done"] += len(facts.done) - len(done)
    kept = {name: value for name, value in sorted(labels.items()) if name in LABELS and LABELS[name].fullmatch(value)}
    dropped["labels"] += len(labels) - len(kept)
    body_part = _plain(facts.body_part).replace("_", " ")
    view = facts.view.strip().upper().replace("_", " ")
    allowed = Facts(
        modality=known("modality", facts.modality.strip().upper(), MODALITIES),
        body_part=known("body_part", body_part, BODY_PARTS),
        view=known("view", view.lower() if view.lower() in VIEWS else view, VIEWS),
        laterality=known("laterality", facts.laterality.strip().upper(), LATERALITIES),
        series=hidden,
        frame=frame,
        done=done,
    )
    return Allowed(allowed, kept, +dropped)


def _harmless(step: str) -> bool:
    """Whether a step's words are all known and its numbers short: none can be a name, a day or a patient's number."""
    words = all(word.lower() in DONE_WORDS for word in _WORD.findall(step))
    return (
        _DONE.fullmatch(step) is not None and words and all(_SHORT_NUMBER.fullmatch(number) for number in _NUMBER.findall(step))
    )


def leaks(data: bytes, texts: Iterable[str]) -> int:
    """How many of a source's texts, or of the parts of its names, stand in the data as whole words, in any usual encoding.

    Known vocabulary and what is shorter than `SHORTEST` is passed over. For text files; `check_picture` is for pictures.
    """
    views = [data.decode("utf-8", "replace"), data.decode("latin-1")]
    if b"\0" in data:
        views += [data[start:].decode(encoding, "replace") for start in (0, 1) for encoding in ("utf-16-le", "utf-16-be")]
    views += [_unescaped(view) for view in views if "\\u" in view]
    plain = [_plain(view) for view in views]
    return sum(any(_stands(needle, view) for view in plain) for needle in needles(texts))


def _unescaped(text: str) -> str:
    """The text with JSON's escapes of letters read, pairs for those beyond 16 bits too."""
    read = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    return read.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def needles(texts: Iterable[str]) -> frozenset[str]:
    """What to look for: each text whole, and of texts in DICOM's form of names (`DOE^JOHN`) each part and word.

    Measures, which are fractions and numbers of up to five digits, are not: widths and windows are such.
    """
    found: set[str] = set()
    for text in texts:
        found.add(_plain(text))
        if "^" in text:
            parts = _plain(re.sub(r"[\^=]", "\n", text).replace("\n", " \n "))
            found.update(parts.split())
            found.add(_plain(re.sub(r"[\^=]", " ", text)))
    return frozenset(
        text for text in found if len(text) >= SHORTEST and text not in _KNOWN and _MEASURE.fullmatch(text) is None
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
    found = leaks(data, texts)
    if found:
        raise ItemError("identity", f"{what} would hold {found} texts of its source")


def check_picture(data: bytes, *, what: str) -> None:
    """Raise an `ItemError` of cause identity unless a PNG or JPEG holds nothing but pixels: no text, profile or rest."""
    foreign = _png_parts(data) if data.startswith(b"\x89PNG") else _jpeg_parts(data)
    if foreign:
        raise ItemError("identity", f"{what} would hold more than pixels: {', '.join(foreign)}")


def _png_parts(data: bytes) -> list[str]:
    """The chunks that are not pixels, and what follows the end."""
    at, foreign = 8, []
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if kind not in _PNG_CHUNKS:
            foreign.append("a chunk of another kind")
        if kind == b"IEND":
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
