"""Finishes an import over all its pictures at once: patients, copies, near copies, splits and intervals.

Reads parts and the private list of files; writes `parts/copies/`.

What is in memory is a number a picture, and an entry for each patient, study and series.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stllava.config import IntakeOptions
from stllava.data.image_set import Imported, LeftOut
from stllava.intake.chunks import Chunks
from stllava.intake.convert import WrittenImage
from stllava.intake.deidentify.pseudonyms import Pseudonyms, day_shift
from stllava.intake.patients import Patients, folder_of
from stllava.intake.quality import CopyIndex, Indices
from stllava.intake.splits import UnionFind, split_of
from stllava.store import PARTS

SEEN_BY_READER = "text-found-by-reader"
"""Why a picture is left out that a reader refused, and why its copies are."""


@dataclass(frozen=True)
class ImageSet:
    """The set as it will be written."""

    chunks: Chunks
    options: IntakeOptions
    ids: "array[int]"
    """Of every picture, as a number."""
    copies: Indices
    """Index of the first picture with the same pixels."""
    near_copies: Indices
    """Index of the first other picture nearly the same; -1 for none."""
    patients: Patients
    """Whose each picture is."""
    groups: UnionFind
    """Patients who must be in one split, since they share a near copy."""
    salt: bytes = field(repr=False)
    firsts: dict[str, int]
    """Each patient's first day, as a number."""
    withheld: Counter[str]
    """Facts that the allow-list did not let through, by name."""
    refused: frozenset[int] = frozenset()
    """Indices of the pictures in which a reader found text, or in a copy of them."""

    def rows(self) -> Iterator[Imported]:
        """The pictures that stay, complete."""
        for index, image in self._images():
            if self._same(index) is not None or index in self.refused:
                continue
            near, patient = int(self.near_copies[index]), self.patients.head(image.pseudonyms)
            near = -1 if near >= 0 and self.first(near) in self.refused else near
            day = _day(image, self.salt)
            yield image.row.model_copy(
                update={
                    "patient": patient,
                    "near": None if near < 0 else self._id(near),
                    "split": split_of(self.groups.find(patient), self.options.splits.shares()),
                    "interval": None if day is None else day - self.firsts[patient],
                }
            )

    def left_out(self) -> Iterator[LeftOut]:
        """What does not stay: first what could not be read, then copies and what a reader refused."""
        yield from (row for row in self.chunks.rows() if isinstance(row, LeftOut))
        for index, image in self._images():
            same = self._same(index)
            if self.first(index) in self.refused:
                yield LeftOut(number=image.number, source=image.row.source, frame=image.index, cause=SEEN_BY_READER)
            elif same is not None:
                cause = "duplicate" if self.copies[index] != index else "near-duplicate"
                yield LeftOut(number=image.number, source=image.row.source, frame=image.index, cause=cause, of=self._id(same))

    def spare(self) -> Iterator[str]:
        """Paths of pictures that do not stay, but for those that bear the name of one that stays."""
        for index, image in self._images():
            first = self.first(index)
            if first in self.refused or self.ids[first] != self.ids[index]:
                yield image.row.path
                if image.row.deep is not None:
                    yield image.row.deep.path

    def first(self, index: int) -> int:
        """Index of the picture that stands for one: itself, or the one that it is a copy of."""
        same = self._same(index)
        return index if same is None else same

    def _images(self) -> Iterator[tuple[int, WrittenImage]]:
        return enumerate(row for row in self.chunks.rows() if isinstance(row, WrittenImage))

    def _id(self, index: int) -> str:
        return f"{self.ids[index]:016x}"

    def _same(self, index: int) -> int | None:
        """Index of the picture for which one is left out; of near copies of near copies the first stays."""
        at = index
        while True:
            before = int(self.copies[at])
            if before == at and self.options.near_duplicates == "drop" and self.near_copies[at] >= 0:
                before = int(self.near_copies[at])
            if before == at:
                return None if at == index else at
            at = before


def finalise(
    chunks: Chunks,
    options: IntakeOptions,
    *,
    source: Path,
    to: Path,
    salt: bytes,
    refused: Collection[str] = (),
) -> ImageSet:
    """Compare all pictures that the chunks hold, and group them; those whose ids are `refused` do not stay."""
    patients, days, withheld, ids = Patients(), dict[str, tuple[Pseudonyms, int]](), Counter[str](), array("Q")
    anonymous: dict[int, Pseudonyms] = {}
    with CopyIndex(to / PARTS / "copies") as copy_index:
        for image in chunks.rows():
            if isinstance(image, WrittenImage):
                ids.append(int(image.row.id, 16))
                copy_index.add(bytes.fromhex(image.digest), None if image.picture is None else int(image.picture, 16))
                patients.add(image.pseudonyms)
                withheld.update(image.withheld)
                if image.pseudonyms.identified_by == "file":
                    anonymous[image.number] = image.pseudonyms
                if (day := _day(image, salt)) is not None:
                    _, before = days.get(image.pseudonyms.patient, (None, day))
                    days[image.pseudonyms.patient] = image.pseudonyms, min(day, before)
    if options.unnamed == "folder" and anonymous:
        _join_folders(patients, anonymous, chunks, source)
    patients.settle()
    firsts: dict[str, int] = {}
    for pseudonyms, day in days.values():
        patient = patients.head(pseudonyms)
        firsts[patient] = min(day, firsts.get(patient, day))
    copies = copy_index.copies()
    near_copies: Indices = np.full(copy_index.count, -1, dtype=np.int64)
    if options.near_duplicates != "ignore":
        # An exact copy is left out anyway, and likes what its first one near_copies.
        near_copies = np.where(copies == np.arange(copy_index.count), copy_index.near_copies(), -1)
    image_set = ImageSet(chunks, options, ids, copies, near_copies, patients, UnionFind(), salt, firsts, withheld)
    if refused:
        unwanted = {int(key, 16) for key in refused}
        indices = frozenset(image_set.first(index) for index, key in enumerate(ids) if key in unwanted)
        image_set = replace(image_set, refused=indices)
    _group_near_copies(image_set)
    return image_set


def _day(image: WrittenImage, salt: bytes) -> int | None:
    """The day of a picture's study as a number, which its part holds moved."""
    return None if image.day is None else image.day - day_shift(salt, image.pseudonyms.patient)


def _join_folders(patients: Patients, anonymous: Mapping[int, Pseudonyms], chunks: Chunks, source: Path) -> None:
    """Take the files of a folder that say nothing of whom they are for those of one patient."""
    firsts: dict[str, Pseudonyms] = {}
    for number, path in chunks.paths():
        if number in anonymous and (folder := folder_of(path, source)):
            patients.join(firsts.setdefault(folder, anonymous[number]), anonymous[number], identified_by="folder")


def _group_near_copies(image_set: ImageSet) -> None:
    """Put the patients of near copies into one group, for nothing that is tested may have been learned from nearly."""
    like = np.flatnonzero(image_set.near_copies >= 0)
    wanted = {int(index) for index in like} | {int(index) for index in image_set.near_copies[like]}
    if wanted:
        patients = {index: image_set.patients.head(image.pseudonyms) for index, image in image_set._images() if index in wanted}
        for index in like:
            image_set.groups.union(patients[int(index)], patients[int(image_set.near_copies[index])])
