"""What metrics say of predictions as columns of numbers: a dozen bytes a reading, so that no prediction need be held."""

from array import array

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
        images = ranks[np.frombuffer(self._images, dtype=np.int64)] if self._images else np.empty(0, dtype=np.int64)
        return bootstrap_interval(np.frombuffer(self._values) if self._values else (), images)
