"""Shares of a whole from a sample that was drawn by strata, and an expert's error rate from readers who err themselves.

Of a stratum of N verdicts, n were read, drawn at random: each stands for N / n of them. Images are the clusters. Verdicts
that a reader could not judge count as read and say nothing. How often the intervals hold the truth is simulated in
`tests/test_stratified.py`. Reads and returns plain numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stllava.metrics.stats import Interval, robust_variance, share_interval, student


@dataclass(frozen=True)
class ReadVerdict:
    """What readers said of one verdict of an expert."""

    stratum: str
    """Where it was drawn."""
    cluster: str
    """Its image."""
    votes: tuple[bool, ...]
    """Of each reader who gave a verdict, the first one first, whether it differs from the expert's; empty where none could."""


@dataclass(frozen=True)
class _Estimate:
    """A mean by stratum weights with the pulls of its clusters."""

    value: float
    pulls: NDArray[np.float64]
    """[G] how far each cluster pulls the mean, in the order of all clusters' names."""


@dataclass(frozen=True)
class ExpertErrors:
    """An expert's share of errors, and what it is made of."""

    disagreed: Interval
    """Share of verdicts from which a reader's vote differs."""
    reader_error: Interval | None
    """Share of readers' votes that are wrong about the expert; None where no verdict was read twice, or readers of the same
    verdict agree no oftener than by chance."""
    expert_error: Interval | None
    """Share of verdicts that are wrong; None where the readers' own errors are not known."""


def stratified_share(
    values: Sequence[float | None], strata: Sequence[str], clusters: Sequence[str], sizes: Mapping[str, int]
) -> Interval | None:
    """Mean of values in [0, 1] over the whole, with its 95 % interval; None where every value is None.

    Args:
        values: Of each verdict read; None where it says nothing.
        strata: Where each was drawn.
        clusters: The image of each.
        sizes: How many verdicts each stratum has in all.
    """
    if all(value is None for value in values):
        return None
    found = _estimate(values, strata, clusters, sizes)
    return _share(found.value, found.pulls)


def expert_errors(read: Sequence[ReadVerdict], sizes: Mapping[str, int]) -> ExpertErrors | None:
    """The share of an expert's verdicts that are wrong, from readers who err themselves; None without a vote.

    Let a share e of verdicts be wrong and each reader be wrong about a share u of them, whatever the expert said and
    independently of other readers. A reader then differs from the expert in d = e (1 - u) + (1 - e) u of them, and two
    readers of the same verdict differ from each other in q = 2 u (1 - u). So 1 - 2 u = √(1 - 2 q), and

        e = 1/2 + (d - 1/2) / √(1 - 2 q).

    d and q are means by stratum weights. The interval is Wilson's of d, its width including what is not known of q, mapped
    to e. Verdicts count whose error rate a reader could tell; where the same readers err oftener on some strata than on
    others, u is their mean.

    Args:
        read: What was read.
        sizes: How many verdicts each stratum has in all.
    """
    strata, clusters = [one.stratum for one in read], [one.cluster for one in read]
    differs = [sum(one.votes) / len(one.votes) if one.votes else None for one in read]
    if all(value is None for value in differs):
        return None
    disagreed = _estimate(differs, strata, clusters, sizes)
    interval = _share(disagreed.value, disagreed.pulls)
    twice = [float(one.votes[0] != one.votes[1]) if len(one.votes) > 1 else None for one in read]
    if all(value is None for value in twice):
        return ExpertErrors(interval, None, None)
    # Who was asked twice was drawn at random among all that were read.
    among = [one for one, value in zip(read, twice, strict=True) if value is not None]
    between = _estimate(
        [value for value in twice if value is not None],
        [one.stratum for one in among],
        [one.cluster for one in among],
        sizes,
        names=sorted(set(clusters)),
    )
    if between.value >= 0.5:
        return ExpertErrors(interval, None, None)
    root = math.sqrt(1 - 2 * between.value)
    pulls = disagreed.pulls / root + (disagreed.value - 0.5) / root**3 * between.pulls
    reach = student(len(pulls) - 1) * math.sqrt(robust_variance(pulls)) if len(pulls) > 1 else math.inf
    ends = share_interval(disagreed.value, root * reach, clusters=len(pulls))
    return ExpertErrors(
        disagreed=interval,
        reader_error=Interval(*(_reader_error(end) for end in _share(between.value, between.pulls, count=len(among)))),
        expert_error=Interval(*(min(1.0, max(0.0, 0.5 + (end - 0.5) / root)) for end in ends)),
    )


def _reader_error(between: float) -> float:
    """How often one reader errs where two differ so often."""
    return (1 - math.sqrt(max(0.0, 1 - 2 * between))) / 2


def _share(value: float, pulls: NDArray[np.float64], *, count: int | None = None) -> Interval:
    """The interval of a share; `count` clusters say something, all where it is None."""
    clusters = len(pulls) if count is None else min(count, len(pulls))
    reach = student(clusters - 1) * math.sqrt(robust_variance(pulls)) if clusters > 1 else math.inf
    return share_interval(value, reach, clusters=clusters)


def _estimate(
    values: Sequence[float | None],
    strata: Sequence[str],
    clusters: Sequence[str],
    sizes: Mapping[str, int],
    *,
    names: Sequence[str] | None = None,
) -> _Estimate:
    """The mean of the values that say something, by stratum weights, and the pulls of the clusters called `names`."""
    read = np.array([value is not None for value in values], dtype=np.float64)
    numbers = np.array([0.0 if value is None else value for value in values])
    kinds, stratum = np.unique(np.asarray(strata), return_inverse=True)
    counts = np.bincount(stratum)
    weights = np.array([sizes[str(kind)] for kind in kinds])[stratum] / counts[stratum] * read
    mean = float((weights * numbers).sum() / weights.sum())
    parts = weights * (numbers - mean) / weights.sum()
    # A stratum's size is known, so only what differs within strata is by chance.
    parts -= (np.bincount(stratum, weights=parts) / counts)[stratum]
    groups = sorted(set(clusters)) if names is None else list(names)
    place = {name: index for index, name in enumerate(groups)}
    pulls = np.zeros(len(groups))
    np.add.at(pulls, [place[name] for name in clusters], parts)
    return _Estimate(mean, pulls)
