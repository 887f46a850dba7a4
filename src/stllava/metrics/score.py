"""From predictions to scores with intervals: our own rules (`robust`) and the published ones (`llava_med`) side by side."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from stllava.metrics import llava_med, robust
from stllava.metrics.score_columns import ImageNumbers, PairedColumn, PairedValues, ScoreColumn
from stllava.metrics.stats import detectable_difference, paired_difference, permutation_p
from stllava.records import Difference, Prediction, QuestionKind, Score

Reader = Callable[[Prediction], float | None]

LLAVA_MED = "llava_med-1.0.0"
"""The published family: LLaVA-Med v1.0.0."""
ROBUST = robust.RULE
"""Our own family."""


@dataclass(frozen=True)
class Metric:
    """A number for every answer to one kind of question."""

    kind: QuestionKind
    """The questions it is for."""
    rule: str
    """The family it belongs to, and its version."""
    read: Reader
    """From 0 to 1; None where the rule cannot read the answer, which counts as 0 and is said beside the score."""
    choices: bool = False
    """Whether it is defined for multiple-choice questions too."""

    def takes(self, row: Prediction) -> bool:
        """Whether it is defined for this prediction."""
        return row.kind == self.kind and (self.choices or not row.choices)


def _closed(row: Prediction) -> float | None:
    if row.choices:
        return robust.choice_accuracy(row.final_answer, row.targets, row.choices)[0]
    return robust.closed_verdict(row.final_answer, row.targets)[0]


def _best(rule: Callable[[str, str], float], row: Prediction) -> float:
    """The published definitions know one reference; of several the best counts."""
    return max(rule(row.final_answer, target) for target in row.targets)


def _published(kind: QuestionKind, rule: Callable[[str, str], float]) -> Metric:
    return Metric(kind, LLAVA_MED, partial(_best, rule))


def _ours(rule: Callable[[str, Sequence[str]], float]) -> Metric:
    return Metric("open", ROBUST, lambda row: rule(row.final_answer, row.targets))


METRICS: dict[str, Metric] = {
    "closed_accuracy": Metric("closed", ROBUST, _closed, choices=True),
    "open_exact_match": _ours(robust.open_exact_match),
    "open_medical_match": _ours(robust.medical_exact_match),
    "open_recall": _ours(robust.open_recall),
    "open_f1": _ours(robust.token_f1),
    "llava_med_closed": _published("closed", llava_med.closed_hit),
    "llava_med_closed_batch": _published("closed", llava_med.closed_hit_batch),
    "llava_med_open_recall": _published("open", llava_med.recall),
    "llava_med_open_precision": _published("open", llava_med.precision),
    "llava_med_open_f1": _published("open", llava_med.f1),
    "llava_med_open_exact_match": _published("open", llava_med.exact_match),
    "llava_med_open_bleu_1": _published("open", lambda said, target: llava_med.bleu(said, target).bleu_1),
}
"""Every metric by name, ours first. `llava_med_open_recall` and `llava_med_closed` are the published "Open" and "Closed"."""

LABEL_METRICS = ("closed_accuracy", "open_exact_match")
"""The metrics that are taken of every group of samples with the same label."""
MAX_LABEL_VALUES = 40
"""Values of a label that are looked at, the commonest: one that numbers its samples has as many as these."""

TWINS = (
    ("closed_accuracy", "llava_med_closed"),
    ("open_recall", "llava_med_open_recall"),
    ("open_exact_match", "llava_med_open_exact_match"),
    ("open_f1", "llava_med_open_f1"),
)
"""Our metric and the published one that measure the same thing by different rules."""


def measured(predictions: Sequence[Prediction], metric: str) -> list[Prediction]:
    """The predictions that a metric is defined for, in their order."""
    return [row for row in predictions if METRICS[metric].takes(row)]


def readings(rows: Sequence[Prediction], metric: str) -> list[float | None]:
    """What a metric says of each of these predictions, which it must be defined for; None where it cannot read one."""
    read = METRICS[metric].read
    return [read(row) for row in rows]


def values(rows: Sequence[Prediction], metric: str) -> list[float]:
    """What each of these predictions counts in the metric's mean: an answer that cannot be read counts as 0."""
    return [reading or 0.0 for reading in readings(rows, metric)]


def is_right(row: Prediction) -> bool:
    """Whether our rule for questions of its kind, closed accuracy or open exact match, counts the answer in full."""
    return values([row], "closed_accuracy" if row.kind == "closed" else "open_exact_match") == [1.0]


def score(predictions: Iterable[Prediction], *, policy: str, benchmark: str, candidates: Sequence[str] = ()) -> list[Score]:
    """Every metric that has samples, its 95 % interval resampled by image.

    The predictions are gone through once and none is held. `candidates` are the answers that the published open accuracy
    chooses from: without them it is not computed.
    """
    images, chosen = ImageNumbers(), ScoreColumn()
    columns = {metric: ScoreColumn() for metric in METRICS}
    for row in predictions:
        image = images.number(row.image)
        for metric, definition in METRICS.items():
            if definition.takes(row):
                columns[metric].add(image, definition.read(row))
        if candidates and METRICS["open_recall"].takes(row):
            chosen.add(image, llava_med.open_hit(row.final_answer, row.targets[0], candidates)[0])
    ranks = images.ranks()
    rules = [(metric, METRICS[metric].rule, column) for metric, column in columns.items()]
    return [
        _score_of(column, ranks, metric=metric, rule=rule, policy=policy, benchmark=benchmark)
        for metric, rule, column in [*rules, ("llava_med_open_accuracy", LLAVA_MED, chosen)]
        if len(column)
    ]


def summed(
    images: Iterable[str], read: Iterable[float | None], *, metric: str, rule: str, policy: str, benchmark: str
) -> Score:
    """One metric's score from what it says of an answer about each image; what it cannot read counts as 0 and is counted."""
    numbers, column = ImageNumbers(), ScoreColumn()
    for image, reading in zip(images, read, strict=True):
        column.add(numbers.number(image), reading)
    return _score_of(column, numbers.ranks(), metric=metric, rule=rule, policy=policy, benchmark=benchmark)


def _score_of(column: ScoreColumn, ranks: NDArray[np.int64], *, metric: str, rule: str, policy: str, benchmark: str) -> Score:
    value, low, high = column.interval(ranks)
    return Score(
        policy=policy,
        benchmark=benchmark,
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=len(column),
        rule=rule,
        abstained=column.unread,
    )


def compare(
    predictions: Iterable[Prediction], others: Iterable[Prediction], *, policy: str, against: str, benchmark: str
) -> list[Difference]:
    """Every metric's paired difference on the samples both answered; both are gone through once and not held."""
    differences, known = [], _SampleValues(others, METRICS)
    images, columns = ImageNumbers(), {metric: PairedColumn() for metric in METRICS}
    for row in predictions:
        known.pair(row, images, columns)
    ranks = images.ranks()
    for metric, column in columns.items():
        if len(column):
            paired = column.values(ranks)
            detectable = detectable_difference(*paired)
            differences.append(
                _difference(paired, metric, policy=policy, against=against, benchmark=benchmark).model_copy(
                    update={
                        "p": permutation_p(*paired),
                        "detectable": detectable if isfinite(detectable) else None,
                    }
                )
            )
    return differences


def label_names(predictions: Iterable[Prediction]) -> list[str]:
    """The labels that tell the samples apart, by name: one that all share says no more than the whole score."""
    first: dict[str, str] = {}
    tells: set[str] = set()
    carried: Counter[str] = Counter()
    count = 0
    for row in predictions:
        count += 1
        for name, value in row.labels.items():
            carried[name] += 1
            if first.setdefault(name, value) != value:
                tells.add(name)
    return sorted(name for name in carried if name in tells or carried[name] < count)


def label_values(predictions: Iterable[Prediction], label: str) -> list[str]:
    """The values of a label, the commonest first."""
    counts = Counter(row.labels[label] for row in predictions if label in row.labels)
    return sorted(counts, key=lambda value: (-counts[value], value))


def scores_by_label(
    predictions: Iterable[Prediction], label: str, *, policy: str, benchmark: str, max_values: int = MAX_LABEL_VALUES
) -> dict[str, list[Score]]:
    """Closed accuracy and open exact match of the samples with each value of a label, the commonest values first.

    Samples that do not carry the label are in no group, nor are values beyond the `max_values` commonest ones. The
    predictions are gone through twice and not held.
    """
    images = ImageNumbers()
    groups = {
        value: {metric: ScoreColumn() for metric in LABEL_METRICS} for value in label_values(predictions, label)[:max_values]
    }
    for row in predictions:
        for metric, column in groups.get(row.labels.get(label, ""), {}).items() if label in row.labels else ():
            if METRICS[metric].takes(row):
                column.add(images.number(row.image), METRICS[metric].read(row))
    ranks = images.ranks()
    return {
        value: [
            _score_of(column, ranks, metric=metric, rule=ROBUST, policy=policy, benchmark=benchmark)
            for metric, column in columns.items()
            if len(column)
        ]
        for value, columns in groups.items()
    }


def differences_by_label(
    predictions: Iterable[Prediction],
    others: Iterable[Prediction],
    label: str,
    *,
    policy: str,
    against: str,
    benchmark: str,
    max_values: int = MAX_LABEL_VALUES,
) -> dict[str, list[Difference]]:
    """The paired differences of the groups that `scores_by_label` makes of the predictions.

    They carry no p-value: among so many groups some differ by chance.

    Args:
        predictions: The answers of the policy whose gain is measured; gone through twice and not held.
        others: The answers of the policy it is compared with.
        label: Name of the label.
        policy: Name of the first policy.
        against: Name of the second.
        benchmark: Name of the benchmark.
        max_values: Number of values, the commonest, that are looked at.
    """
    known, images = _SampleValues(others, LABEL_METRICS), ImageNumbers()
    groups = {
        value: {metric: PairedColumn() for metric in LABEL_METRICS} for value in label_values(predictions, label)[:max_values]
    }
    for row in predictions:
        if label in row.labels and row.labels[label] in groups:
            known.pair(row, images, groups[row.labels[label]])
    ranks = images.ranks()
    return {
        value: [
            _difference(column.values(ranks), metric, policy=policy, against=against, benchmark=benchmark)
            for metric, column in columns.items()
            if len(column)
        ]
        for value, columns in groups.items()
    }


class _SampleValues:
    """What some metrics count of each sample that a policy answered, as numbers by sample."""

    def __init__(self, predictions: Iterable[Prediction], metrics: Iterable[str]) -> None:
        self._places: dict[str, int] = {}
        self._values = {metric: array("d") for metric in metrics}
        for place, row in enumerate(predictions):
            self._places[row.sample_id] = place
            for metric, column in self._values.items():
                column.append((METRICS[metric].read(row) or 0.0) if METRICS[metric].takes(row) else 0.0)

    def pair(self, row: Prediction, images: ImageNumbers, columns: Mapping[str, PairedColumn]) -> None:
        """Add what the metrics count of another policy's answer beside that of this one, where this one answered too."""
        place = self._places.get(row.sample_id)
        if place is None:
            return
        image = images.number(row.image)
        for metric, column in columns.items():
            if METRICS[metric].takes(row):
                column.add(image, METRICS[metric].read(row) or 0.0, self._values[metric][place])


def _difference(paired: PairedValues, metric: str, *, policy: str, against: str, benchmark: str) -> Difference:
    """The mean paired difference of a metric with its interval."""
    value, low, high = paired_difference(*paired)
    n = len(paired.images)
    return Difference(policy=policy, against=against, benchmark=benchmark, metric=metric, value=value, low=low, high=high, n=n)
