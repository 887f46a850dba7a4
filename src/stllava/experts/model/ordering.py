"""In which orders answers are shown, and what the replies come to. Pure.

Where the orders disagree about two answers, it is a tie; where one of them brought no verdict, there is none. Of answers that
are all the same text there is nothing to compare, and so no verdict either.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from stllava.experts.model.rubric import Mode
from stllava.experts.model.verdict_parser import MOST_POINTS, ParsedReply
from stllava.records import Comparison, VerdictCause

RIGHT = 0.8
"""A completion of this mean score is right enough to need no correction: the rubric's 8 of 10."""
Order = tuple[int, ...]
"""Places of completions, first shown first."""


@dataclass(frozen=True)
class Aggregated:
    """What several replies about the same answers come to."""

    scores: tuple[float, ...] | None
    """One per completion, from 0 to 1; None when there is no verdict."""
    cause: VerdictCause | None
    """Why there is none."""
    comparisons: tuple[Comparison, ...]
    """Of every two different texts."""
    correction: str | None = None
    """The right answer, where the replies that saw the best completion say that it is not right."""


def distinct(completions: Sequence[str]) -> list[int]:
    """The place of each text where it first stands; equal texts need no judge."""
    return sorted({text: place for place, text in reversed(list(enumerate(completions)))}.values())


def contests(places: Sequence[int]) -> list[tuple[int, int]]:
    """Every two places, the earlier one first."""
    return list(combinations(places, 2))


def better(scores: Sequence[float], one: int, other: int) -> int | None:
    """Which of two places scored higher; None where they scored the same."""
    return None if scores[one] == scores[other] else one if scores[one] > scores[other] else other


def orders(places: Sequence[int], *, mode: Mode, count: int) -> Iterator[Order]:
    """The orders in which to show answers: every two of them `count` times, or all of them `count` times.

    Each is followed by its reverse, so that of two orders every answer stands before every other one once.
    """
    if len(places) < 2:
        return
    if mode == "pairwise":
        for one, other in contests(places):
            yield from ((one, other) if turn % 2 == 0 else (other, one) for turn in range(count))
        return
    for turn in range(count):
        shift = turn // 2 % len(places)
        turned = (*places[shift:], *places[:shift])
        yield turned if turn % 2 == 0 else turned[::-1]


def aggregate(completions: Sequence[str], replies: Sequence[tuple[Order, ParsedReply]], *, mode: Mode) -> Aggregated:
    """The verdict of the replies to answers shown in several orders."""
    places = distinct(completions)
    comparisons = tuple(_compared(one, other, replies) for one, other in contests(places))
    causes = [parsed.cause for _, parsed in replies if parsed.cause is not None]
    if len(places) == 1:
        return Aggregated(None, "same text", comparisons)
    marks = wins(comparisons) if mode == "pairwise" else {} if causes else _means(replies)
    if len(marks) < len(places):
        return Aggregated(None, _commonest(causes), comparisons)
    by_text = {completions[place]: mark for place, mark in marks.items()}
    scores = tuple(by_text[text] for text in completions)
    return Aggregated(scores, None, comparisons, _correction(marks, replies, mode=mode))


def _correction(marks: Mapping[int, float], replies: Sequence[tuple[Order, ParsedReply]], *, mode: Mode) -> str | None:
    """The first correction of a reply that saw the best completion; none of one that is right by its own score."""
    best = max(marks, key=lambda place: (marks[place], -place))
    if mode == "scores" and marks[best] >= RIGHT:
        return None
    return next((parsed.correction for order, parsed in replies if best in order and parsed.correction is not None), None)


def _compared(one: int, other: int, replies: Sequence[tuple[Order, ParsedReply]]) -> Comparison:
    """What the replies that saw two completions say of them."""
    signs: set[int] = set()
    for order, parsed in replies:
        if one not in order or other not in order:
            continue
        if parsed.scores is None:
            return Comparison(first=one, second=other, winner=None, cause=parsed.cause)
        gap = parsed.scores[order.index(one)] - parsed.scores[order.index(other)]
        signs.add((gap > 0) - (gap < 0))
    winner = {1: one, -1: other, 0: None}[signs.pop()] if len(signs) == 1 else None
    return Comparison(first=one, second=other, winner=winner, flipped={1, -1} <= signs)


def wins(comparisons: Sequence[Comparison]) -> dict[int, float]:
    """Each place's share of won comparisons, ties by half; of no verdict are those that were never judged."""
    points: dict[int, list[float]] = {}
    for comparison in comparisons:
        if comparison.cause is None:
            for place in (comparison.first, comparison.second):
                won = 0.5 if comparison.winner is None else float(comparison.winner == place)
                points.setdefault(place, []).append(won)
    return {place: sum(given) / len(given) for place, given in points.items()}


def _means(replies: Sequence[tuple[Order, ParsedReply]]) -> dict[int, float]:
    marks: dict[int, list[float]] = {}
    for order, parsed in replies:
        for place, score in zip(order, parsed.scores or (), strict=True):
            marks.setdefault(place, []).append(score)
    return {place: sum(given) / len(given) / MOST_POINTS for place, given in marks.items()}


def _commonest(causes: Sequence[VerdictCause]) -> VerdictCause:
    return max(sorted(set(causes)), key=causes.count) if causes else "failed"
