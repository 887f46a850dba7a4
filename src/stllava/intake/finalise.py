"""Looks over all pictures of an import at once: patients, copies, near copies, splits and intervals.

Reads parts and the private list of files; writes `parts/look/`.

What is in memory is a number a picture, and an entry for each patient, study and series.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stllava.config import IntakeOptions
from stllava.data.image_set import Imported, LeftOut
from stllava.intake.chunks import Chunks
from stllava.intake.convert import Made
from stllava.intake.deidentify.allowlist import day_shift
from stllava.intake.patients import Hidden, Patients, folder_of
from stllava.intake.quality import Index, Places
from stllava.intake.splits import Groups, split_of
from stllava.store import PARTS


@dataclass(frozen=True)
class Whole:
    """The set as it will be written."""

    chunks: Chunks
    options: IntakeOptions
    ids: "array[int]"
    """Of every picture, as a number."""
    copies: Places
    """Place of the first picture with the same pixels."""
    likes: Places
    """Place of the first other picture nearly the same; -1 for none."""
    patients: Patients
    """Whose each picture is."""
    groups: Groups
    """Patients who must be in one split, since they share a near copy."""
    salt: bytes = field(repr=False)
    firsts: dict[str, int]
    """Each patient's first day, as a number."""
    withheld: Counter[str]
    """Facts that the allow-list did not let through, by name."""

    def rows(self) -> Iterator[Imported]:
        """The pictures that stay, complete."""
        for place, made in self._made():
            if self._same(place) is not None:
                continue
            near, patient = int(self.likes[place]), self.patients.head(made.who)
            day = _day(made, self.salt)
            yield made.row.model_copy(
                update={
                    "patient": patient,
                    "near": None if near < 0 else self._id(near),
                    "split": split_of(self.groups.head(patient), self.options.splits),
                    "interval": None if day is None else day - self.firsts[patient],
                }
            )

    def left_out(self) -> Iterator[LeftOut]:
        """What does not stay: first what could not be read, then copies."""
        yield from (one for one in self.chunks.rows() if isinstance(one, LeftOut))
        for place, made in self._made():
            same = self._same(place)
            if same is not None:
                cause = "duplicate" if self.copies[place] != place else "near-duplicate"
                yield LeftOut(number=made.number, source=made.row.source, frame=made.place, cause=cause, of=self._id(same))

    def spare(self) -> Iterator[str]:
        """Paths of pictures that do not stay, but for those that bear the name of one that stays."""
        for place, made in self._made():
            same = self._same(place)
            if same is not None and self.ids[same] != self.ids[place]:
                yield made.row.path

    def _made(self) -> Iterator[tuple[int, Made]]:
        return enumerate(one for one in self.chunks.rows() if isinstance(one, Made))

    def _id(self, place: int) -> str:
        return f"{self.ids[place]:016x}"

    def _same(self, place: int) -> int | None:
        """Place of the picture for which one is left out; of near copies of near copies the first stays."""
        at = place
        while True:
            before = int(self.copies[at])
            if before == at and self.options.near_duplicates == "drop" and self.likes[at] >= 0:
                before = int(self.likes[at])
            if before == at:
                return None if at == place else at
            at = before


def look_over(chunks: Chunks, options: IntakeOptions, *, source: Path, to: Path, salt: bytes) -> Whole:
    """Compare all pictures that the chunks hold, and group them."""
    patients, days, withheld, ids = Patients(), dict[str, tuple[Hidden, int]](), Counter[str](), array("Q")
    untold: dict[int, Hidden] = {}
    with Index(to / PARTS / "look") as index:
        for made in chunks.rows():
            if isinstance(made, Made):
                ids.append(int(made.row.id, 16))
                index.add(bytes.fromhex(made.digest), None if made.picture is None else int(made.picture, 16))
                patients.add(made.who)
                withheld.update(made.withheld)
                if made.who.told == "file":
                    untold[made.number] = made.who
                if (day := _day(made, salt)) is not None:
                    _, before = days.get(made.who.patient, (None, day))
                    days[made.who.patient] = made.who, min(day, before)
    if options.unnamed == "folder" and untold:
        _join_folders(patients, untold, chunks, source)
    patients.settle()
    firsts: dict[str, int] = {}
    for who, day in days.values():
        patient = patients.head(who)
        firsts[patient] = min(day, firsts.get(patient, day))
    copies = index.copies()
    likes: Places = np.full(index.count, -1, dtype=np.int64)
    if options.near_duplicates != "ignore":
        # An exact copy is left out anyway, and likes what its first one likes.
        likes = np.where(copies == np.arange(index.count), index.likes(), -1)
    whole = Whole(chunks, options, ids, copies, likes, patients, Groups(), salt, firsts, withheld)
    _tie_alike(whole)
    return whole


def _day(made: Made, salt: bytes) -> int | None:
    """The day of a picture's study as a number, which its part holds moved."""
    return None if made.day is None else made.day - day_shift(salt, made.who.patient)


def _join_folders(patients: Patients, untold: Mapping[int, Hidden], chunks: Chunks, source: Path) -> None:
    """Take the files of a folder that say nothing of whom they are for those of one patient."""
    firsts: dict[str, Hidden] = {}
    for number, path in chunks.paths():
        if number in untold and (folder := folder_of(path, source)):
            patients.join(firsts.setdefault(folder, untold[number]), untold[number], told="folder")


def _tie_alike(whole: Whole) -> None:
    """Put the patients of near copies into one group, for nothing that is tested may have been learned from nearly."""
    one = np.flatnonzero(whole.likes >= 0)
    wanted = {int(place) for place in one} | {int(place) for place in whole.likes[one]}
    if wanted:
        patients = {place: whole.patients.head(made.who) for place, made in whole._made() if place in wanted}
        for place in one:
            whole.groups.join(patients[int(place)], patients[int(whole.likes[place])])
