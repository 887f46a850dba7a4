"""Looks over all pictures of an import at once: copies, near copies, splits and intervals. Reads parts; writes `parts/look/`.

What is in memory is a number a picture, and an entry for each patient, study and series.
"""

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stllava.config import IntakeOptions
from stllava.data.intake.chunks import Chunks
from stllava.data.intake.convert import Made
from stllava.data.intake.imported import Imported, LeftOut
from stllava.data.intake.quality import Index, Places
from stllava.data.intake.splits import Groups, split_of
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
    groups: Groups
    """Who must be in one split."""
    firsts: dict[str, int]
    """Each hidden patient's first day, moved by its secret."""
    withheld: Counter[str]
    """Facts that the allow-list did not let through, by name."""

    def rows(self) -> Iterator[Imported]:
        """The pictures that stay, complete."""
        for place, made in self._made():
            if self._same(place) is not None:
                continue
            row, near = made.row, int(self.likes[place])
            yield row.model_copy(
                update={
                    "near": None if near < 0 else self._id(near),
                    "split": split_of(self.groups.head(made.ties[0]), self.options.splits),
                    "interval": None if made.day is None else made.day - self.firsts[row.patient],
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


def look_over(chunks: Chunks, options: IntakeOptions, *, to: Path) -> Whole:
    """Compare all pictures that the chunks hold, and group them."""
    groups, firsts, withheld, ids = Groups(), dict[str, int](), Counter[str](), array("Q")
    with Index(to / PARTS / "look") as index:
        for made in chunks.rows():
            if isinstance(made, Made):
                ids.append(int(made.row.id, 16))
                index.add(bytes.fromhex(made.digest), None if made.picture is None else int(made.picture, 16))
                groups.tie(made.ties)
                withheld.update(made.withheld)
                if made.day is not None:
                    firsts[made.row.patient] = min(made.day, firsts.get(made.row.patient, made.day))
    copies = index.copies()
    likes: Places = np.full(index.count, -1, dtype=np.int64)
    if options.near_duplicates != "ignore":
        # An exact copy is left out anyway, and likes what its first one likes.
        likes = np.where(copies == np.arange(index.count), index.likes(), -1)
    whole = Whole(chunks, options, ids, copies, likes, groups, firsts, withheld)
    _tie_alike(whole)
    return whole


def _tie_alike(whole: Whole) -> None:
    """Put the patients of near copies into one group, for nothing that is tested may have been learned from nearly."""
    one = np.flatnonzero(whole.likes >= 0)
    wanted = {int(place) for place in one} | {int(place) for place in whole.likes[one]}
    if wanted:
        ties = {place: made.ties[0] for place, made in whole._made() if place in wanted}
        for place in one:
            whole.groups.join(ties[int(place)], ties[int(whole.likes[place])])
