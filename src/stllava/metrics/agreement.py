"""How far two judges of the same comparisons agree, and biases of one of them; intervals are resampled by image."""

from collections import Counter
from collections.abc import Callable, Sequence

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


def kappa(
    ours: Sequence[int],
    theirs: Sequence[int],
    clusters: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> Rate | None:
    """Cohen's kappa with its 95 % percentile interval, resampling whole clusters; None of nothing.

    `weights` say how many pairs of labels each stands for; without them each counts once.
    """
    if not ours:
        return None
    if len(ours) != len(theirs):
        raise ValueError(f"kappa of {len(ours)} and {len(theirs)} labels")
    each = [1.0] * len(ours) if weights is None else weights
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    labels = sorted({*ours, *theirs})
    place = {label: number for number, label in enumerate(labels)}
    tables = np.zeros((len(names), len(labels), len(labels)))
    for cluster, one, other, weight in zip(index, ours, theirs, each, strict=True):
        tables[cluster, place[one], place[other]] += weight
    value = cohen_kappa(ours, theirs) if weights is None else float(_kappas(tables.sum(axis=0)[None])[0])
    return _resampled(tables, _kappas, value=value, n=len(ours), seed=seed)


def krippendorff_alpha(units: Sequence[Sequence[int]], clusters: Sequence[str], *, seed: int = 0) -> Rate | None:
    """Krippendorff's (2004) alpha of nominal labels with its 95 % percentile interval, resampling whole clusters.

    Units with fewer than two labels say nothing of agreement and are left out; None where no other is left. 1 is full
    agreement, 0 what chance gives; of labels that are all the same, 1.

    Args:
        units: The labels of each unit, one for each of its raters.
        clusters: The image of each unit.
        seed: Decides the resamples.
    """
    several = [(unit, cluster) for unit, cluster in zip(units, clusters, strict=True) if len(unit) > 1]
    if not several:
        return None
    names, index = np.unique(np.asarray([cluster for _, cluster in several]), return_inverse=True)
    labels = sorted({label for unit, _ in several for label in unit})
    place = {label: number for number, label in enumerate(labels)}
    tables = np.zeros((len(names), len(labels), len(labels)))
    for cluster, (unit, _) in zip(index, several, strict=True):
        for first, one in enumerate(unit):
            for second, other in enumerate(unit):
                if first != second:
                    tables[cluster, place[one], place[other]] += 1 / (len(unit) - 1)
    value = float(_alphas(tables.sum(axis=0)[None])[0])
    return _resampled(tables, _alphas, value=value, n=len(several), seed=seed)


def _resampled(tables: np.ndarray, of: Callable[[np.ndarray], np.ndarray], *, value: float, n: int, seed: int) -> Rate:
    """A figure of the sum of the clusters' tables [G, L, L], with its percentile interval."""
    clusters = len(tables)
    if clusters == 1:
        return Rate(value=value, low=-1.0, high=1.0, n=n)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES)
    low, high = (float(end) for end in np.quantile(of(np.einsum("rc,cij->rij", drawn, tables)), (0.025, 0.975)))
    return Rate(value=value, low=min(low, value), high=max(high, value), n=n)


def _kappas(tables: np.ndarray) -> np.ndarray:
    """[R] Cohen's kappas of tables of labels [R, L, L]."""
    totals = tables.sum(axis=(1, 2))
    expected = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1) / totals**2
    return _beyond_chance(np.trace(tables, axis1=1, axis2=2) / totals, expected)


def _alphas(tables: np.ndarray) -> np.ndarray:
    """[R] Krippendorff's alphas of coincidences [R, L, L]."""
    counts = tables.sum(axis=2)
    totals = counts.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = (counts * (counts - 1)).sum(axis=1) / (totals * (totals - 1))
    return _beyond_chance(np.trace(tables, axis1=1, axis2=2) / totals, expected)


def _beyond_chance(observed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How much of what chance leaves open is agreed on; 1 where it leaves nothing open."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = np.where(expected == 1.0, 1.0, (observed - expected) / (1 - expected))
    return found


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
