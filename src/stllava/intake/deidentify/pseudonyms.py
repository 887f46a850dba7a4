"""Salted ids that stand for patients, studies, series and pictures, and days moved by a secret: nobody can turn them back.

    secret = open_salt(Path("keys/salt"), output=Path("data"))
    pseudonyms = pseudonymise(identity, secret, source=digest)

Reads and writes the salt, a file of 32 random bytes that stays with the user; without it nobody can link an id back or
make the same ids again. Ids are HMAC-SHA256 under the salt, so they cannot be guessed from a list of names. `Pseudonyms` are
equal wherever files may be of one patient, however exports spell it; `patients.py` says who is one patient.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
from datetime import date
from pathlib import Path
from typing import Literal, get_args

from stllava.errors import StllavaError
from stllava.intake.deidentify.spelling import LONG, name_key, number_key, number_of, plain_day, whole_key
from stllava.intake.readers.frame import Identity
from stllava.records import Record

SALT_BYTES = 32
SHIFT_DAYS = 1 << 20
IdentifiedBy = Literal["PatientID and issuer", "PatientID", "name", "study", "folder", "file"]
"""By what a patient is identified_by apart from others, the surest first."""
IDENTIFIED_BY: tuple[IdentifiedBy, ...] = get_args(IdentifiedBy)
_OWN_FRAME = re.compile(r"(?!1\.2\.840\.10008\.)[0-9.]{20,64}")
"""A frame of reference of one examination: not an atlas of the standard's, and not what sloppy writers call all of theirs."""


class Pseudonyms(Record):
    """The ids of one file, which say who belongs together and not who it is."""

    patient: str
    """Of the patient by this file alone."""
    study: str
    series: str
    identified_by: IdentifiedBy
    """What `patient` goes by."""
    without_issuer: str | None = None
    """What `patient` would be without the issuer; None where there is none."""
    links: tuple[str, ...] = ()
    """What files of one patient alone have in common: study and series."""
    hints: tuple[str, ...] = ()
    """What says whose a file without a number is, the surest first, each behind its rank: accession number and day, frame of
    reference, name."""
    undivided: str | None = None
    """What `patient` would be if the groups of digits in its number were not divided; None where they are not."""
    other_numbers: tuple[tuple[str, str], ...] = ()
    """Of the patient by each other number, and by that number without its issuer."""


def pseudonymise(identity: Identity, salt: bytes, *, source: str) -> Pseudonyms:
    """Hidden ids of a file; `source` tells it apart (its content's hash, say) and stands in for what is not known."""
    number, issuer = number_of(identity.patient, identity.issuer)
    name, study, series = name_key(identity.name), identity.study.strip("\0 "), identity.series.strip("\0 ")
    day = identity.date.strip()
    accession = number_key(identity.accession)
    frame = _OWN_FRAME.fullmatch(identity.frame_of_reference.strip("\0 "))
    links = [("study", study), ("series", series)]
    hints = [
        ("accession", f"{accession} {day}" if len(accession) >= LONG - 1 and day else ""),
        ("frame of reference", "" if frame is None else frame[0]),
        ("name", name),
    ]
    identified_by: IdentifiedBy = "file"
    patient = hidden_id(salt, "patient of", study or series or source)
    if number:
        identified_by = "PatientID and issuer" if issuer else "PatientID"
        patient = _hidden_number(salt, number, issuer)
    elif name:
        identified_by = "name"
    elif study or any(value for _, value in hints):
        identified_by = "study"
    others = [(other, by) for other, by in (number_of(*pair) for pair in identity.others) if other]
    return Pseudonyms(
        patient=patient,
        study=hidden_id(salt, "study", study or series or source),
        series=hidden_id(salt, "series", series or f"{study} {source}"),
        identified_by=identified_by,
        without_issuer=_hidden_number(salt, number, "") if number and issuer else None,
        undivided=_hidden_number(salt, whole_key(identity.patient.split("^")[0]), issuer) if "-" in number else None,
        links=tuple(hidden_id(salt, f"tie of {name}", value) for name, value in links if value),
        hints=tuple(f"{rank}{hidden_id(salt, name, value)}" for rank, (name, value) in enumerate(hints) if value),
        other_numbers=tuple((_hidden_number(salt, other, by), _hidden_number(salt, other, "")) for other, by in others),
    )


def _hidden_number(salt: bytes, number: str, issuer: str) -> str:
    return hidden_id(salt, "patient", number, issuer) if issuer else hidden_id(salt, "patient", number)


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


def day_number(text: str) -> int | None:
    """A day (YYYYMMDD) as a number of days; None of what is no day."""
    day = plain_day(text)
    return date(int(day[:4]), int(day[4:6]), int(day[6:])).toordinal() if day else None


def day_shift(salt: bytes, patient: str) -> int:
    """Days by which the days of a hidden patient are moved until the whole set is known: a secret of his own."""
    return int(hidden_id(salt, "day", patient), 16) % SHIFT_DAYS
