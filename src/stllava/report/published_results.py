"""Reads `published_results.yaml`, the numbers that others printed: they have no interval and no answers to score again."""

from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict

from stllava.metrics.score import METRICS
from stllava.records import QuestionKind

MARK = "published, not measured here"


class PublishedScore(NamedTuple):
    """One printed number: a share from 0 to 1, and the samples it is the mean of."""

    value: float
    n: int

    @property
    def text(self) -> str:
        """In percent, as printed."""
        return f"{100 * self.value:.2f}"


class PublishedResult(NamedTuple):
    """What somebody printed of one model on one benchmark."""

    model: str
    source: str
    cells: dict[str, PublishedScore]
    """By metric."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    questions: dict[str, dict[QuestionKind, int]]
    models: dict[str, dict[str, dict[str, float]]]


def read_published(benchmark: str) -> list[PublishedResult]:
    """The printed rows of a benchmark; none for a name that the file does not know.

    Both `vqa-rad` and `vqa-rad-test` name the published test split: runs use the first, imported benchmarks the second.
    """
    text = Path(__file__).with_name("published_results.yaml").read_text(encoding="utf-8")
    known = _File.model_validate(yaml.safe_load(text))
    name = benchmark.removesuffix("-test")
    results = []
    for model, benchmarks in known.models.items():
        if name in benchmarks:
            sizes = known.questions[name]
            cells = {
                metric: PublishedScore(value / 100, sizes[METRICS[metric].kind]) for metric, value in benchmarks[name].items()
            }
            results.append(PublishedResult(model, known.source, cells))
    return results
