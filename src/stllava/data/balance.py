"""What is left out so that a policy learns from images, not from how often an answer was right. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stllava.config.experts import WORDS_OF_KIND
from stllava.metrics.robust import is_yes_no, normalise, yes_no


class TaughtAnswer(NamedTuple):
    """A question and the answer that is taught for it."""

    id: str
    """Of the pair or conversation that teaches it."""
    question: str
    answer: str


def opening_words(question: str) -> str:
    """The first words of a question, by which its kind is told."""
    return " ".join(question.lower().split()[:WORDS_OF_KIND])


def surplus_of_yes_or_no(taught: Iterable[TaughtAnswer]) -> set[str]:
    """Ids of those without which yes and no are taught equally often: of the more frequent answer, the last ids.

    Counted among questions that begin with the same three words: a policy that hears yes to "is this a …" and no to "is
    there a …" learns the question, not the image.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for row in taught:
        if is_yes_no(row.answer):
            groups.setdefault(opening_words(row.question), {"yes": [], "no": []})[normalise(row.answer)].append(row.id)
    return {
        key for group in groups.values() for keys in group.values() for key in sorted(keys)[min(map(len, group.values())) :]
    }


def surplus_of_denials(taught: Sequence[TaughtAnswer], *, max_share: float) -> set[str]:
    """Ids of the last denials ("there is no …" to more than yes or no) without which they are at most that share."""
    denials = sorted(row.id for row in taught if not is_yes_no(row.answer) and yes_no(row.answer) == "no")
    if max_share == 1 or not denials:
        return set()
    others = len(taught) - len(denials)
    return set(denials[int(max_share / (1 - max_share) * others) :])
