"""What is left of a run when its folder is gone: how many answers about each test image were right, policy by policy.

A table of many arms and seeds takes more hours than one machine has in a day. Tallies are small, lie in the repository, and
are all that the table's scores, paired differences and intervals need: those resample images, not questions.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from stllava.metrics.score import measured, values
from stllava.records import Prediction


class RunTally(BaseModel):
    """Right answers of the policies of one finished run on one test set, by metric."""

    commit: str
    """Of the code that made the run."""
    seconds: float
    """That its stages took."""
    questions: dict[str, dict[str, int]]
    """Metric → image → how many questions about it the metric takes."""
    right: dict[str, dict[str, list[int]]]
    """Policy → metric → right answers about each image, in the order of `questions`."""
    labels: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}
    """Policy → kind of question → metric → right answers and questions."""


def tally(told: Mapping[str, Sequence[Prediction]], metrics: Sequence[str], *, seconds: float, commit: str) -> RunTally:
    """Count what every policy got right; all must have answered the same questions."""
    questions: dict[str, dict[str, int]] = {}
    right: dict[str, dict[str, list[int]]] = {}
    labels: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}
    for policy, predictions in told.items():
        kinds = labels.setdefault(policy, {})
        for metric in metrics:
            rows = measured(predictions, metric)
            asked = dict(sorted(Counter(row.image for row in rows).items()))
            if questions.setdefault(metric, asked) != asked:
                raise ValueError(f"{policy} answered other questions than the policies before it")
            found: Counter[str] = Counter()
            for row, value in zip(rows, values(rows, metric), strict=True):
                if value not in (0.0, 1.0):
                    raise ValueError(f"{metric} is {value} of one answer: only what is right or wrong can be counted")
                found[row.image] += int(value)
                if (kind := row.labels.get("question")) is not None:
                    of_kind = kinds.setdefault(kind, {})
                    right_before, count = of_kind.get(metric, (0, 0))
                    of_kind[metric] = (right_before + int(value), count + 1)
            right.setdefault(policy, {})[metric] = [found[image] for image in asked]
    return RunTally(commit=commit, seconds=seconds, questions=questions, right=right, labels=labels)


def each_answer(tally: RunTally, policy: str, metric: str) -> tuple[list[float], list[str]]:
    """1 or 0 of every answer, and its image; the answers about one image stand in no order of their own."""
    scores: list[float] = []
    images: list[str] = []
    for (image, count), right in zip(tally.questions[metric].items(), tally.right[policy][metric], strict=True):
        scores += [1.0] * right + [0.0] * (count - right)
        images += [image] * count
    return scores, images


def kinds_over_seeds(tallies: Sequence[RunTally], policy: str) -> dict[str, dict[str, float]]:
    """Kind of question → metric → percent right, of the answers of all seeds together; the commonest kinds first."""
    added: dict[str, dict[str, tuple[int, int]]] = {}
    for one in tallies:
        for kind, by_metric in one.labels[policy].items():
            for metric, (right, count) in by_metric.items():
                before = added.setdefault(kind, {}).get(metric, (0, 0))
                added[kind][metric] = (before[0] + right, before[1] + count)
    most = sorted(added, key=lambda kind: -sum(count for _, count in added[kind].values()))
    return {kind: {metric: 100 * right / count for metric, (right, count) in sorted(added[kind].items())} for kind in most}


def write_tally(path: Path, tally: RunTally) -> None:
    """Write a tally where the next session finds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tally.model_dump(), ensure_ascii=False) + "\n", encoding="utf-8")


def read_tally(path: Path) -> RunTally:
    """The tally of a file."""
    return RunTally.model_validate_json(path.read_text(encoding="utf-8"))
