"""From predictions to scores with intervals, by the rules of `robust`."""

from collections.abc import Callable, Sequence

from stllava.metrics.robust import closed_accuracy, open_exact_match, open_recall
from stllava.metrics.stats import bootstrap_interval, paired_difference
from stllava.records import Difference, Prediction, QuestionKind, Score

Rule = Callable[[str, Sequence[str]], float]
METRICS: dict[str, tuple[QuestionKind, Rule]] = {
    "closed_accuracy": ("closed", closed_accuracy),
    "open_recall": ("open", open_recall),
    "open_exact_match": ("open", open_exact_match),
}


def score(predictions: Sequence[Prediction], *, policy: str, benchmark: str) -> list[Score]:
    """Every metric that has samples, its 95 % interval resampled by image."""
    scores = []
    for metric, (kind, rule) in METRICS.items():
        rows = [row for row in predictions if row.kind == kind]
        if rows:
            value, low, high = bootstrap_interval(
                [rule(row.completion, row.targets) for row in rows], [row.image for row in rows]
            )
            scores.append(
                Score(policy=policy, benchmark=benchmark, metric=metric, value=value, low=low, high=high, n=len(rows))
            )
    return scores


def compare(
    predictions: Sequence[Prediction], others: Sequence[Prediction], *, policy: str, against: str, benchmark: str
) -> list[Difference]:
    """Every metric's paired difference on the samples both answered."""
    known = {row.sample_id: row for row in others}
    differences = []
    for metric, (kind, rule) in METRICS.items():
        rows = [(row, known[row.sample_id]) for row in predictions if row.kind == kind and row.sample_id in known]
        if rows:
            value, low, high = paired_difference(
                [rule(mine.completion, mine.targets) for mine, _ in rows],
                [rule(other.completion, other.targets) for _, other in rows],
                [mine.image for mine, _ in rows],
            )
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
                )
            )
    return differences
