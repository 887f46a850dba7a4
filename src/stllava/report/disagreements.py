"""Where our rules and the published ones disagree about the same answers: how often, and examples to judge by."""

from collections.abc import Iterable
from dataclasses import dataclass

from stllava.metrics.score import METRICS, TWINS
from stllava.records import Prediction, content_id
from stllava.text import shorten

APART = 0.5
"""Scores that differ by less are not shown as examples, though they are counted."""
EXAMPLES = 4


@dataclass(frozen=True)
class Example:
    """One answer that two rules score differently."""

    question: str
    reference: str
    answer: str
    ours: float | None
    """None where our rule cannot read the answer."""
    published: float


@dataclass(frozen=True)
class Disagreement:
    """Our metric and its published twin on the same answers."""

    ours: str
    published: str
    n: int
    """Answers that both score."""
    differ: int
    """Of these, those that they score differently."""
    higher: int
    """Of those, the ones that the published rule scores higher."""
    examples: tuple[Example, ...]


def disagreements(predictions: Iterable[Prediction]) -> list[Disagreement]:
    """Every pair of twin metrics that has answers to score; examples in the order of a hash of their ids.

    The predictions are gone through once for each pair and not held.
    """
    found = []
    for ours, published in TWINS:
        n, differ, higher = 0, 0, 0
        shown: list[tuple[str, Prediction, float | None, float]] = []
        for row in predictions:
            if not (METRICS[ours].takes(row) and METRICS[published].takes(row)):
                continue
            n += 1
            mine, theirs = METRICS[ours].read(row), METRICS[published].read(row) or 0.0
            apart = abs((mine or 0.0) - theirs)
            if apart > 1e-9:
                differ += 1
                higher += theirs > (mine or 0.0)
            if apart >= APART:
                shown = sorted([*shown, (content_id("gallery", row.id), row, mine, theirs)], key=lambda one: one[0])[:EXAMPLES]
        if n:
            examples = tuple(_example(*one[1:]) for one in shown)
            found.append(Disagreement(ours, published, n=n, differ=differ, higher=higher, examples=examples))
    return found


def _example(row: Prediction, ours: float | None, published: float) -> Example:
    return Example(
        question=shorten(row.question, 160),
        reference=shorten(" / ".join(dict.fromkeys(row.targets)), 120),
        answer=shorten(row.completion, 200) or "(nothing)",
        ours=ours,
        published=published,
    )
