"""Who a picture is of: hidden ids that are equal wherever files may be of one patient, however exports spell it.

    pseudonyms = pseudonymise(identity, salt, source=digest)      # of each file
    patients.add(pseudonyms); …; patients.settle()                # of all of them
    patients.head(pseudonyms)                                     # the patient's own id

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
from collections.abc import Mapping
from pathlib import Path

from stllava.intake.deidentify.pseudonyms import IDENTIFIED_BY, IdentifiedBy, Pseudonyms
from stllava.intake.splits import UnionFind

_RANKS: Mapping[IdentifiedBy, int] = {"PatientID and issuer": 0, "PatientID": 0, "name": 2, "study": 2, "folder": 3, "file": 3}

_NAME = "2"
"""The rank of names among hints."""
_SUBJECT = re.compile(r"sub-[0-9A-Za-z]+")


def folder_of(path: Path, source: Path) -> str:
    """The folder below `source` that stands for the patient of a file that says nothing; empty of the source itself.

    Of a tree in BIDS's form it is the subject's, whatever the session.
    """
    *folders, name = path.relative_to(source).parts
    for depth, folder in enumerate([*folders, name.partition("_")[0]], 1):
        if _SUBJECT.fullmatch(folder):
            return "/".join([*folders[: depth - 1], folder])
    return "/".join(folders)


class Patients:
    """Which hidden ids are of one patient, over all files of a set."""

    def __init__(self) -> None:
        self._groups = UnionFind()
        self._issued: dict[str, str] = {}
        """By a number with its issuer, the number alone."""
        self._loose: set[str] = set()
        """Numbers that some file gives without an issuer."""
        self._hints: dict[str, tuple[set[str], set[str]]] = {}
        """By a hint, the studies or files without a number that have it, and the patients with a number who do."""
        self._undivided: dict[str, str] = {}
        """By a number in groups, the number undivided."""
        self._identified_by: dict[str, IdentifiedBy] = {}
        self.joined = 0
        """Hidden ids, once settled, that turned out to be of a patient with another one."""

    def add(self, pseudonyms: Pseudonyms) -> None:
        """Take what one file says."""
        member = self._member(pseudonyms)
        # Links sort behind patients, so that the head of a group is a patient, and a new study changes nobody's id.
        self._groups.union_all(
            [member, *(f"9{link}" for link in pseudonyms.links), *(f"0{other}" for other, _ in pseudonyms.other_numbers)]
        )
        self._identified_by[member] = pseudonyms.identified_by
        for other, bare in pseudonyms.other_numbers:
            if other == bare:
                self._loose.add(f"0{other}")
            else:
                self._issued[f"0{other}"] = f"0{bare}"
        if pseudonyms.without_issuer is not None:
            self._issued[member] = f"0{pseudonyms.without_issuer}"
        elif pseudonyms.identified_by == "PatientID":
            self._loose.add(member)
        if pseudonyms.undivided is not None:
            self._undivided[member] = f"0{pseudonyms.undivided}"
        for hint in pseudonyms.hints:
            without, numbered = self._hints.setdefault(hint, (set(), set()))
            (numbered if member.startswith("0") else without).add(member)

    def join(self, first: Pseudonyms, second: Pseudonyms, *, identified_by: IdentifiedBy) -> None:
        """Take two files for those of one patient, who is identified by what `identified_by` says."""
        members = [self._member(pseudonyms) for pseudonyms in (first, second)]
        self._groups.union_all(members)
        self._identified_by.update(dict.fromkeys(members, identified_by))

    def settle(self) -> None:
        """Join what only all files together can tell: numbers without an issuer, and files with a name alone."""
        for issued, bare in self._issued.items():
            if bare in self._loose:
                self._groups.union(issued, bare)
        for divided, whole in self._undivided.items():
            # 1-11 and 11-1 are two patients; whose 111 is, nobody knows.
            if whole in self._identified_by:
                self._groups.union(divided, whole)
        for hint, (without, numbered) in sorted(self._hints.items()):
            # Whose study has a number by another of its files, or by a surer hint, needs none.
            unknown = [member for member in sorted(without) if not self._groups.find(member).startswith("0")]
            if unknown:
                known = [f"1{hint[1:]}"] if hint.startswith(_NAME) else []
                self._groups.union_all([*known, *unknown, *sorted(numbered)])
        best: dict[str, IdentifiedBy] = {}
        for member, evidence in self._identified_by.items():
            head = self._groups.find(member)
            best[head] = min(evidence, best.get(head, evidence), key=IDENTIFIED_BY.index)
        self.joined, self._identified_by = len(self._identified_by) - len(best), best

    def head(self, pseudonyms: Pseudonyms) -> str:
        """The hidden id of the patient that a file is of."""
        return self._groups.find(self._member(pseudonyms))[1:]

    def identified_by(self) -> dict[str, IdentifiedBy]:
        """What each patient goes by, by hidden id; the surest of what their files say."""
        return {head[1:]: evidence for head, evidence in self._identified_by.items()}

    @staticmethod
    def _member(pseudonyms: Pseudonyms) -> str:
        """The patient among groups, of which the surest is the smallest; 1 is for names."""
        return f"{_RANKS[pseudonyms.identified_by]}{pseudonyms.patient}"
