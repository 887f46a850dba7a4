"""Where our rules and the published ones disagree about the same answers: how often, and examples to judge by."""

from collections.abc import Sequence
from dataclasses import dataclass

from stllava.metrics.score import TWINS, measured, readings
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


def disagreements(predictions: Sequence[Prediction]) -> list[Disagreement]:
    """Every pair of twin metrics that has answers to score; examples in the order of a hash of their ids."""
    found = []
    for ours, published in TWINS:
        rows = measured(measured(predictions, ours), published)
        if not rows:
            continue
        scored = list(zip(rows, readings(rows, ours), readings(rows, published), strict=True))
        apart = [(row, mine, theirs or 0.0) for row, mine, theirs in scored if abs((mine or 0.0) - (theirs or 0.0)) > 1e-9]
        shown = sorted(
            (one for one in apart if abs((one[1] or 0.0) - one[2]) >= APART), key=lambda one: content_id("gallery", one[0].id)
        )
        found.append(
            Disagreement(
                ours=ours,
                published=published,
                n=len(rows),
                differ=len(apart),
                higher=sum(theirs > (mine or 0.0) for _, mine, theirs in apart),
                examples=tuple(_example(*one) for one in shown[:EXAMPLES]),
            )
        )
    return found


def _example(row: Prediction, ours: float | None, published: float) -> Example:
    return Example(
        question=shorten(row.question, 160),
        reference=shorten(" / ".join(dict.fromkeys(row.targets)), 120),
        answer=shorten(row.completion, 200) or "(nothing)",
        ours=ours,
        published=published,
    )
