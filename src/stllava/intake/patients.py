"""Who a picture is of: hidden ids that are equal wherever files may be of one patient, however exports spell it.

    who = hide(identity, salt, source=digest)      # of each file
    patients.add(who); …; patients.settle()        # of all of them
    patients.head(who.patient)                     # the patient's own id

Patients are told apart by PatientID and its issuer; where a file gives no issuer, all with its number are one patient.
Case, padding, marks between letters and digits, leading zeros and the parts that HL7 puts behind a number make no
difference. Files with different numbers are of one patient where they share a study or a series, or where one has the
other's number among its other ones. Whose a file without a number is say its study, its accession number and day, its
frame of reference and its name, in this order; a name never tells patients apart. Words that stand for nobody
("ANONYMOUS", "0") are no number and no name. When in doubt, together: two patients taken for one make the splits coarser,
one taken for two is on both sides.

Pure: reads and writes nothing. Memory grows with patients, studies and series, not with pictures.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args

from stllava.intake.deidentify.allowlist import hidden_id
from stllava.intake.readers.frame import Identity
from stllava.intake.splits import Groups
from stllava.metrics.words import composed
from stllava.records import Record

Told = Literal["PatientID and issuer", "PatientID", "name", "study", "folder", "file"]
"""By what a patient is told apart from others, the surest first."""
TOLD: tuple[Told, ...] = get_args(Told)
_RANKS: Mapping[Told, int] = {"PatientID and issuer": 0, "PatientID": 0, "name": 2, "study": 2, "folder": 3, "file": 3}

_PLACEHOLDERS = """
anon anonym anonymised anonymized anonymous deid deidentified dummy empty hidden id masked na name nil nn no nobody noid none
noname null number of patient patientid patientname redacted removed test unknown unnamed unspecified x xx xxx xxxx
"""
_NOBODY = frozenset(_PLACEHOLDERS.split())
_LONG = 8
"""Digits from which a number is one however it is grouped, as health services group theirs: 943-476-5919."""
_OWN_FRAME = re.compile(r"(?!1\.2\.840\.10008\.)[0-9.]{20,64}")
"""A frame of reference of one examination: not an atlas of the standard's, and not what sloppy writers call all of theirs."""
_NAME = "2"
"""The rank of names among hints."""
_TOKENS = re.compile(r"\d+|[^\W\d_]+|[\W_]+")
_WORDS = re.compile(r"[^\W_]+")


class Hidden(Record):
    """The ids of one file, which say who belongs together and not who it is."""

    patient: str
    """Of the patient by this file alone."""
    study: str
    series: str
    told: Told
    """What `patient` goes by."""
    bare: str | None = None
    """What `patient` would be without the issuer; None where there is none."""
    links: tuple[str, ...] = ()
    """What files of one patient alone have in common: study and series."""
    hints: tuple[str, ...] = ()
    """What says whose a file without a number is, the surest first, each behind its rank: accession number and day, frame of
    reference, name."""
    whole: str | None = None
    """What `patient` would be if the groups of digits in its number were not divided; None where they are not."""
    others: tuple[tuple[str, str], ...] = ()
    """Of the patient by each other number, and by that number without its issuer."""


def hide(identity: Identity, salt: bytes, *, source: str) -> Hidden:
    """Hidden ids of a file; `source` tells it apart (its content's hash, say) and stands in for what is not known."""
    number, issuer = number_of(identity.patient, identity.issuer)
    name, study, series = name_key(identity.name), identity.study.strip("\0 "), identity.series.strip("\0 ")
    day = identity.date.strip()
    accession = number_key(identity.accession)
    frame = _OWN_FRAME.fullmatch(identity.frame_of_reference.strip("\0 "))
    links = [("study", study), ("series", series)]
    hints = [
        ("accession", f"{accession} {day}" if len(accession) >= _LONG - 1 and day else ""),
        ("frame of reference", "" if frame is None else frame[0]),
        ("name", name),
    ]
    told: Told = "file"
    patient = hidden_id(salt, "patient of", study or series or source)
    if number:
        told = "PatientID and issuer" if issuer else "PatientID"
        patient = _hidden_number(salt, number, issuer)
    elif name:
        told = "name"
    elif study or any(value for _, value in hints):
        told = "study"
    others = [(other, by) for other, by in (number_of(*one) for one in identity.others) if other]
    return Hidden(
        patient=patient,
        study=hidden_id(salt, "study", study or series or source),
        series=hidden_id(salt, "series", series or f"{study} {source}"),
        told=told,
        bare=_hidden_number(salt, number, "") if number and issuer else None,
        whole=_hidden_number(salt, whole_key(identity.patient.split("^")[0]), issuer) if "-" in number else None,
        links=tuple(hidden_id(salt, f"tie of {kind}", value) for kind, value in links if value),
        hints=tuple(f"{rank}{hidden_id(salt, kind, value)}" for rank, (kind, value) in enumerate(hints) if value),
        others=tuple((_hidden_number(salt, other, by), _hidden_number(salt, other, "")) for other, by in others),
    )


def _hidden_number(salt: bytes, number: str, issuer: str) -> str:
    return hidden_id(salt, "patient", number, issuer) if issuer else hidden_id(salt, "patient", number)


def number_of(text: str, issuer: str) -> tuple[str, str]:
    """A patient's number and its issuer in one spelling; empty where the text is no number, or nobody's."""
    parts = text.split("^")
    if len(parts) > 3 and parts[3].strip() and (any(map(str.isdecimal, parts[0])) or not number_key(parts[0])):
        # As HL7 writes it: the number, two parts about its check digit, and who issued it.
        text, issuer = parts[0], issuer or parts[3]
    number = number_key(text)
    return number, number_key(next((part for part in issuer.split("&") if part.strip()), "")) if number else ""


def number_key(text: str) -> str:
    """One spelling of a number: without case, marks but those between digits, and leading zeros; empty of nobody's."""
    tokens = _tokens(text)
    letters = any(token[0].isalnum() and not token[0].isdecimal() for token in tokens)
    whole = whole_key(text)
    if not letters and len(whole) >= _LONG:
        return whole
    key = "".join(_joined(tokens))
    return "" if key.replace("-", "").strip("0") == "" or key.replace("-", "") in _NOBODY else key


def whole_key(text: str) -> str:
    """The spelling of a number whose groups of digits are not divided."""
    return "".join(token for token in _tokens(text) if token[0].isalnum()).lstrip("0")


def _tokens(text: str) -> list[str]:
    """Runs of digits, of letters and of marks, digits in ASCII; a spreadsheet's fraction of nought is left out."""
    plain = "".join(composed(text.replace("\0", " ")).casefold().split())
    tokens = [_decimal(token) if token[0].isdecimal() else token for token in _TOKENS.findall(plain)]
    return tokens[:1] if tokens[1:] == [".", "0"] and tokens[0].isdecimal() else tokens


def _joined(tokens: list[str]) -> Iterator[str]:
    """Letters, digits without leading zeros, and a dash between two runs of digits that are apart."""
    around = zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False)
    for before, token, behind in around:
        if token[0].isdecimal():
            yield token.lstrip("0") or "0"
        elif token[0].isalnum():
            yield token
        elif before[:1].isdecimal() and behind[:1].isdecimal():
            yield "-"


def _decimal(digits: str) -> str:
    return "".join(str(unicodedata.decimal(digit)) for digit in digits)


def name_key(text: str) -> str:
    """The words of a name, without accents, in order of the alphabet, so that DOE^JANE is Jane Doe; empty of nobody's."""
    first = next((group for group in text.replace("\0", " ").split("=") if group.strip("^ ")), "")
    bare = "".join(letter for letter in unicodedata.normalize("NFKD", composed(first)) if not unicodedata.combining(letter))
    words = sorted(_WORDS.findall(bare.casefold()))
    return "" if _NOBODY.issuperset(words) or max(map(len, words)) < 2 else " ".join(words)


_SUBJECT = re.compile(r"sub-[0-9A-Za-z]+")


def folder_of(path: Path, source: Path) -> str:
    """The folder below `source` that stands for the patient of a file that says nothing; empty of the source itself.

    Of a tree in BIDS's form it is the subject's, whatever the session.
    """
    *folders, name = path.relative_to(source).parts
    for place, folder in enumerate([*folders, name.partition("_")[0]], 1):
        if _SUBJECT.fullmatch(folder):
            return "/".join([*folders[: place - 1], folder])
    return "/".join(folders)


class Patients:
    """Which hidden ids are of one patient, over all files of a set."""

    def __init__(self) -> None:
        self._groups = Groups()
        self._issued: dict[str, str] = {}
        """By a number with its issuer, the number alone."""
        self._loose: set[str] = set()
        """Numbers that some file gives without an issuer."""
        self._hints: dict[str, tuple[set[str], set[str]]] = {}
        """By a hint, the studies or files without a number that have it, and the patients with a number who do."""
        self._whole: dict[str, str] = {}
        """By a number in groups, the number undivided."""
        self._told: dict[str, Told] = {}
        self.joined = 0
        """Hidden ids, once settled, that turned out to be of a patient with another one."""

    def add(self, who: Hidden) -> None:
        """Take what one file says."""
        member = self._member(who.patient, who.told)
        # Links sort behind patients, so that the head of a group is a patient, and a new study changes nobody's id.
        self._groups.tie([member, *(f"9{link}" for link in who.links), *(f"0{other}" for other, _ in who.others)])
        self._told[member] = who.told
        for other, bare in who.others:
            if other == bare:
                self._loose.add(f"0{other}")
            else:
                self._issued[f"0{other}"] = f"0{bare}"
        if who.bare is not None:
            self._issued[member] = f"0{who.bare}"
        elif who.told == "PatientID":
            self._loose.add(member)
        if who.whole is not None:
            self._whole[member] = f"0{who.whole}"
        for hint in who.hints:
            without, numbered = self._hints.setdefault(hint, (set(), set()))
            (numbered if member.startswith("0") else without).add(member)

    def join(self, one: Hidden, other: Hidden, *, told: Told) -> None:
        """Take two files for those of one patient, by what `told` says."""
        members = [self._member(who.patient, who.told) for who in (one, other)]
        self._groups.tie(members)
        self._told.update(dict.fromkeys(members, told))

    def settle(self) -> None:
        """Join what only all files together can tell: numbers without an issuer, and files with a name alone."""
        for issued, bare in self._issued.items():
            if bare in self._loose:
                self._groups.join(issued, bare)
        for divided, whole in self._whole.items():
            # 1-11 and 11-1 are two patients; whose 111 is, nobody knows.
            if whole in self._told:
                self._groups.join(divided, whole)
        for hint, (without, numbered) in sorted(self._hints.items()):
            # Whose study has a number by another of its files, or by a surer hint, needs none.
            unknown = [member for member in sorted(without) if not self._groups.head(member).startswith("0")]
            if unknown:
                known = [f"1{hint[1:]}"] if hint.startswith(_NAME) else []
                self._groups.tie([*known, *unknown, *sorted(numbered)])
        best: dict[str, Told] = {}
        for member, told in self._told.items():
            head = self._groups.head(member)
            best[head] = min(told, best.get(head, told), key=TOLD.index)
        self.joined, self._told = len(self._told) - len(best), best

    def head(self, who: Hidden) -> str:
        """The hidden id of the patient that a file is of."""
        return self._groups.head(self._member(who.patient, who.told))[1:]

    def told(self) -> dict[str, Told]:
        """What each patient goes by, by hidden id; the surest of what their files say."""
        return {head[1:]: told for head, told in self._told.items()}

    @staticmethod
    def _member(patient: str, told: Told) -> str:
        """The patient among groups, of which the surest is the smallest; 1 is for names."""
        return f"{_RANKS[told]}{patient}"
