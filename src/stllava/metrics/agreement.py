"""How far two judges of the same comparisons agree, and biases of one of them; intervals are resampled by image."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from stllava.metrics.stats import bootstrap_interval
from stllava.records import Rate

RESAMPLES = 2000


def rate(hits: Sequence[bool], clusters: Sequence[str]) -> Rate | None:
    """The share of hits with its interval; None of nothing."""
    if not hits:
        return None
    value, low, high = bootstrap_interval([float(hit) for hit in hits], clusters)
    return Rate(value=value, low=low, high=high, n=len(hits))


def cohen_kappa(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """Cohen's (1960) kappa of two lists of labels: 1 full agreement, 0 what chance gives; of constant equal lists 1."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"kappa of {len(ours)} and {len(theirs)} labels")
    count = len(ours)
    observed = sum(one == other for one, other in zip(ours, theirs, strict=True)) / count
    mine, others = Counter(ours), Counter(theirs)
    expected = sum(mine[label] * others[label] for label in mine) / count**2
    return 1.0 if expected == 1.0 else (observed - expected) / (1 - expected)


def kappa(ours: Sequence[int], theirs: Sequence[int], clusters: Sequence[str], *, seed: int = 0) -> Rate | None:
    """Cohen's kappa with its 95 % percentile interval, resampling whole clusters; None of nothing."""
    if not ours:
        return None
    value = cohen_kappa(ours, theirs)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) == 1:
        return Rate(value=value, low=-1.0, high=1.0, n=len(ours))
    labels = sorted({*ours, *theirs})
    place = {label: number for number, label in enumerate(labels)}
    tables = np.zeros((len(names), len(labels), len(labels)))
    for cluster, one, other in zip(index, ours, theirs, strict=True):
        tables[cluster, place[one], place[other]] += 1
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    sums = np.einsum("rc,cij->rij", drawn, tables)
    totals = sums.sum(axis=(1, 2))
    observed = np.trace(sums, axis1=1, axis2=2) / totals
    expected = (sums.sum(axis=2) * sums.sum(axis=1)).sum(axis=1) / totals**2
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.where(expected == 1.0, 1.0, (observed - expected) / (1 - expected))
    low, high = (float(end) for end in np.quantile(found, (0.025, 0.975)))
    return Rate(value=value, low=min(low, value), high=max(high, value), n=len(ours))


def balanced(hits: Sequence[bool], strata: Sequence[bool], clusters: Sequence[str], *, seed: int = 0) -> Rate | None:
    """The mean of the shares of hits in two strata, as if both were equally large, with its 95 % interval.

    None where a stratum is empty. Whole clusters are resampled; resamples that empty a stratum are left out.
    """
    if not any(strata) or all(strata):
        return None
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.zeros((len(names), 2, 2))
    for cluster, stratum, hit in zip(index, strata, hits, strict=True):
        counts[cluster, int(stratum), int(hit)] += 1
    value = float(_balanced(counts.sum(axis=0)[None])[0])
    if len(names) == 1:
        return Rate(value=value, low=0.0, high=1.0, n=len(hits))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    sums = np.einsum("rc,cij->rij", drawn, counts)
    whole = sums[(sums.sum(axis=2) > 0).all(axis=1)]
    low, high = (float(end) for end in np.quantile(_balanced(whole), (0.025, 0.975)))
    return Rate(value=value, low=min(low, value), high=max(high, value), n=len(hits))


def _balanced(counts: np.ndarray) -> np.ndarray:
    """[R] means of the strata's shares of hits, of counts [R, stratum, hit]."""
    shares: np.ndarray = (counts[..., 1] / counts.sum(axis=2)).mean(axis=1)
    return shares
