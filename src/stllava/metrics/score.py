"""From predictions to scores with intervals: our own rules (`robust`) and the published ones (`llava_med`) side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite

from stllava.metrics import llava_med, robust
from stllava.metrics.stats import bootstrap_interval, detectable_difference, paired_difference, permutation_p
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

TWINS = (
    ("closed_accuracy", "llava_med_closed"),
    ("open_recall", "llava_med_open_recall"),
    ("open_exact_match", "llava_med_open_exact_match"),
    ("open_f1", "llava_med_open_f1"),
)
"""Our metric and the published one that measure the same thing by different rules."""


def measured(predictions: Sequence[Prediction], metric: str) -> list[Prediction]:
    """The predictions that a metric is defined for, in their order."""
    wanted = METRICS[metric]
    return [row for row in predictions if row.kind == wanted.kind and (wanted.choices or not row.choices)]


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


def score(predictions: Sequence[Prediction], *, policy: str, benchmark: str, candidates: Sequence[str] = ()) -> list[Score]:
    """Every metric that has samples, its 95 % interval resampled by image.

    `candidates` are the answers that the published open accuracy chooses from: without them it is not computed.
    """
    found = []
    for metric, definition in METRICS.items():
        rows = measured(predictions, metric)
        if rows:
            read = readings(rows, metric)
            found.append(summed(rows, read, metric=metric, rule=definition.rule, policy=policy, benchmark=benchmark))
    rows = measured(predictions, "open_recall")
    if rows and candidates:
        hits = [llava_med.open_hit(row.final_answer, row.targets[0], candidates)[0] for row in rows]
        named = "llava_med_open_accuracy"
        found.append(summed(rows, hits, metric=named, rule=LLAVA_MED, policy=policy, benchmark=benchmark))
    return found


def summed(
    rows: Sequence[Prediction], read: Sequence[float | None], *, metric: str, rule: str, policy: str, benchmark: str
) -> Score:
    """One metric's score from what it says of each row; what it cannot read counts as 0 and is counted."""
    value, low, high = bootstrap_interval([reading or 0.0 for reading in read], [row.image for row in rows])
    return Score(
        policy=policy,
        benchmark=benchmark,
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=len(rows),
        rule=rule,
        abstained=sum(reading is None for reading in read),
    )


def compare(
    predictions: Sequence[Prediction], others: Sequence[Prediction], *, policy: str, against: str, benchmark: str
) -> list[Difference]:
    """Every metric's paired difference on the samples both answered."""
    known = {row.sample_id: row for row in others}
    differences = []
    for metric in METRICS:
        rows = [row for row in measured(predictions, metric) if row.sample_id in known]
        if rows:
            mine, theirs = values(rows, metric), values([known[row.sample_id] for row in rows], metric)
            images = [row.image for row in rows]
            value, low, high = paired_difference(mine, theirs, images)
            detectable = detectable_difference(mine, theirs, images)
            differences.append(
                Difference(
                    policy=policy,
                    against=against,
                    benchmark=benchmark,
                    metric=metric,
                    value=value,
                    low=low,
                    high=high,
                    n=len(rows),
                    p=permutation_p(mine, theirs, images),
                    detectable=detectable if isfinite(detectable) else None,
                )
            )
    return differences
