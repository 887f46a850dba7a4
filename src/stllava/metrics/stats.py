"""Means with 95 % intervals; questions about one image are not independent, so images are what is resampled."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 20


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_interval(values: Sequence[float], clusters: Sequence[str], *, seed: int = 0, resamples: int = 2000) -> Interval:
    """Mean of the values (each in [0, 1]) and its 95 % percentile interval, resampling whole clusters (images).

    The same input and seed give the same interval. One cluster tells nothing about others: the interval is then all
    of [0, 1]. With fewer than about 20 clusters it is somewhat too narrow.
    """
    return _interval(np.asarray(values, dtype=np.float64), clusters, seed=seed, resamples=resamples, widest=(0.0, 1.0))


def paired_difference(
    a: Sequence[float], b: Sequence[float], clusters: Sequence[str], *, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Mean of a − b over the same samples and its 95 % interval, as `bootstrap_interval`; one cluster gives [−1, 1]."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return _interval(differences, clusters, seed=seed, resamples=resamples, widest=(-1.0, 1.0))


def _interval(
    values: NDArray[np.float64], clusters: Sequence[str], *, seed: int, resamples: int, widest: tuple[float, float]
) -> Interval:
    if not len(values):
        raise ValueError("no values: the mean of nothing is not defined")
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values, but {len(clusters)} clusters")
    if not np.isfinite(values).all():
        raise ValueError("a value is not a finite number")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    count = len(names)
    mean = float(values.mean())
    if count == 1:
        return Interval(mean, *widest)
    sums, sizes = np.bincount(index, weights=values), np.bincount(index).astype(np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // count)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        drawn = rng.integers(count, size=(min(rows, resamples - start), count), dtype=np.int32)
        means[start : start + rows] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = (float(end) for end in np.quantile(means, (0.025, 0.975)))
    # Rounding, or clusters of very unequal size, can leave the mean itself just outside.
    return Interval(mean, min(low, mean), max(high, mean))
