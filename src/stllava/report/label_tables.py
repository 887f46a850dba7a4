"""Scores by every label that samples carry, such as the kind of question and the source: for the page and for programs."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from stllava.metrics.score import (
    LABEL_METRICS,
    MAX_LABEL_VALUES,
    differences_by_label,
    label_names,
    label_values,
    scores_by_label,
)
from stllava.records import Difference, Prediction, Score
from stllava.report import wording
from stllava.report.run_files import RunFiles
from stllava.rundir import SFT

SMALL_GROUP = 30
"""A group of fewer samples is marked: its interval is wide, and somewhat too narrow for what it is."""


@dataclass(frozen=True)
class LabelRow:
    """One group of samples in one metric."""

    value: str
    n: int
    scores: tuple[Score | None, ...]
    """One a policy, in the order of the table."""
    gain: Difference | None

    @property
    def small(self) -> bool:
        """Whether the group is too small to say much."""
        return self.n < SMALL_GROUP


@dataclass(frozen=True)
class LabelTable:
    """One metric by the values of one label."""

    metric: str
    rows: tuple[LabelRow, ...]


@dataclass(frozen=True)
class LabelScores:
    """What every policy scores by the values of one label on one benchmark."""

    benchmark: str
    label: str
    policies: tuple[str, ...]
    scores: dict[str, dict[str, list[Score]]]
    """By policy, then by value, the commonest value first."""
    gains: dict[str, list[Difference]]
    """What the challenger gains over sft, by value; empty where there is none."""
    left_out: int
    """Values beyond the commonest ones."""
    samples_left_out: int
    """Samples with such a value."""

    @property
    def tables(self) -> tuple[LabelTable, ...]:
        """A table for each metric that some group has."""
        return tuple(table for metric in LABEL_METRICS if (table := self._table(metric)).rows)

    @property
    def as_json(self) -> dict[str, JsonValue]:
        """The numbers, for programs."""
        return {
            "benchmark": self.benchmark,
            "label": self.label,
            "left_out": self.left_out,
            "samples_left_out": self.samples_left_out,
            "values": {
                value: {
                    "rows": [
                        score.model_dump(mode="json") for by_value in self.scores.values() for score in by_value.get(value, ())
                    ],
                    "differences": [gain.model_dump(mode="json") for gain in self.gains.get(value, ())],
                }
                for value in self._values
            },
        }

    @property
    def _values(self) -> list[str]:
        return list(dict.fromkeys(value for by_value in self.scores.values() for value in by_value))

    def _table(self, metric: str) -> LabelTable:
        rows = []
        for value in self._values:
            scores = tuple(
                next((one for one in self.scores[policy].get(value, ()) if one.metric == metric), None)
                for policy in self.policies
            )
            gain = next((one for one in self.gains.get(value, ()) if one.metric == metric), None)
            if known := [score.n for score in scores if score is not None]:
                rows.append(LabelRow(value, max(known), scores, gain))
        return LabelTable(metric, tuple(rows))


def scores_by_every_label(run: RunFiles) -> list[LabelScores]:
    """The trained policies' scores by every label of every benchmark; the challenger of sft is the one the report compares."""
    return [
        _scores_by_label(run, benchmark, label)
        for benchmark in wording.benchmarks(run.outcome.scores)
        for label in label_names(row for rows in run.predictions.get(benchmark, {}).values() for row in rows)
    ]


def _scores_by_label(run: RunFiles, benchmark: str, label: str) -> LabelScores:
    answered = {name: rows for name, rows in run.predictions[benchmark].items() if name in run.outcome.policies}
    challenger = wording.challenger(run.outcome)
    gains: dict[str, list[Difference]] = {}
    if challenger != SFT and {challenger, SFT} <= answered.keys():
        gains = differences_by_label(
            answered[challenger], answered[SFT], label, policy=challenger, against=SFT, benchmark=benchmark
        )
    first: Sequence[Prediction] = next(iter(answered.values()), ())
    rare = set(label_values(first, label)[MAX_LABEL_VALUES:])
    return LabelScores(
        benchmark,
        label,
        tuple(answered),
        {name: scores_by_label(rows, label, policy=name, benchmark=benchmark) for name, rows in answered.items()},
        gains,
        left_out=len(rare),
        samples_left_out=sum(row.labels.get(label) in rare for row in first),
    )
