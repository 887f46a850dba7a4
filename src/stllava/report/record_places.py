"""Where records stand by their names, so that one of millions is found again without holding any of them."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class RecordPlaces:
    """The place of each of many names; 16 bytes a name, a hash of it and the place, are held.

    Two of a million different names have the same hash once in a hundred million times.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.hashes: NDArray[np.int64] = np.fromiter(map(hash, names), dtype=np.int64)
        """[N] of the names, in their order."""
        self._order = np.argsort(self.hashes, kind="stable")

    @property
    def different(self) -> int:
        """How many different names there are."""
        return len(np.unique(self.hashes))

    def find(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """[M] the first place of the name with each of M hashes; -1 where there is none."""
        if not len(self.hashes):
            return np.full(len(hashes), -1, dtype=np.int64)
        at = np.searchsorted(self.hashes, hashes, sorter=self._order)
        places = self._order[np.minimum(at, len(self._order) - 1)]
        return np.where(self.hashes[places] == hashes, places, -1)

    def place(self, name: str) -> int | None:
        """The first place of a name; None where there is none."""
        place = int(self.find(np.array([hash(name)], dtype=np.int64))[0])
        return None if place < 0 else place


def by_content(keys: Iterable[str]) -> NDArray[np.int64]:
    """[N] the places of records in the order of their content ids (`records.content_id`), equal ones as they stand."""
    numbers = np.fromiter((int(key, 16) for key in keys), dtype=np.uint64)
    return np.argsort(numbers, kind="stable")
