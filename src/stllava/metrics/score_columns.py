"""What metrics say of predictions as columns of numbers: a dozen bytes a reading, so that no prediction need be held."""

from array import array
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stllava.metrics.stats import Interval, bootstrap_interval


class ImageNumbers:
    """Images by number in the order in which they come up; each name is held once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, image: str) -> int:
        """The number of an image, the next one where it is new."""
        return self._numbers.setdefault(image, len(self._numbers))

    def ranks(self) -> NDArray[np.int64]:
        """[images] the place of each numbered image among the sorted names."""
        ranks = np.empty(len(self._numbers), dtype=np.int64)
        for rank, name in enumerate(sorted(self._numbers)):
            ranks[self._numbers[name]] = rank
        return ranks


class ScoreColumn:
    """What one metric says of the predictions that it is defined for: a number and the image's number of each."""

    def __init__(self) -> None:
        self._values, self._images = array("d"), array("q")
        self.unread = 0
        """Predictions that the metric cannot read; each counts as 0."""

    def __len__(self) -> int:
        return len(self._values)

    def add(self, image: int, reading: float | None) -> None:
        """Take what the metric says of a prediction about the image of this number; None where it cannot read it."""
        self.unread += reading is None
        self._values.append(reading or 0.0)
        self._images.append(image)

    def interval(self, ranks: NDArray[np.int64]) -> Interval:
        """The mean with its 95 % interval, resampled by image; `ranks` are those of `ImageNumbers`.

        Raises:
            ValueError: Where the column is empty.
        """
        return bootstrap_interval(_numbers(self._values), ranks[_places(self._images)])


class PairedValues(NamedTuple):
    """What two policies score on the same samples."""

    mine: NDArray[np.float64]
    theirs: NDArray[np.float64]
    images: NDArray[np.int64]
    """The place of each sample's image among the sorted names of all."""


class PairedColumn:
    """What one metric says of two policies' answers to the same samples, with the image's number of each."""

    def __init__(self) -> None:
        self._mine, self._theirs, self._images = array("d"), array("d"), array("q")

    def __len__(self) -> int:
        return len(self._images)

    def add(self, image: int, mine: float, theirs: float) -> None:
        """Take both scores of a sample about the image of this number."""
        self._mine.append(mine)
        self._theirs.append(theirs)
        self._images.append(image)

    def values(self, ranks: NDArray[np.int64]) -> PairedValues:
        """All of them; `ranks` are those of `ImageNumbers`."""
        return PairedValues(_numbers(self._mine), _numbers(self._theirs), ranks[_places(self._images)])


def _numbers(column: "array[float]") -> NDArray[np.float64]:
    return np.frombuffer(column) if column else np.empty(0)


def _places(column: "array[int]") -> NDArray[np.int64]:
    return np.frombuffer(column, dtype=np.int64) if column else np.empty(0, dtype=np.int64)
