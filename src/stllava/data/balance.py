"""What is left out so that a policy learns from images, not from how often an answer was right. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stllava.metrics.robust import is_yes_no, normalise, yes_no

OPENING = 3
"""Words at the beginning of a question that say what kind it is."""


class Taught(NamedTuple):
    """A question and the answer that is taught for it."""

    id: str
    """Of the pair or conversation that teaches it."""
    question: str
    answer: str


def unbalanced(taught: Iterable[Taught]) -> set[str]:
    """Ids of those without which yes and no are taught equally often: of the more frequent answer, the last ids.

    Counted among questions that begin with the same three words: a policy that hears yes to "is this a …" and no to "is
    there a …" learns the question, not the image.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for one in taught:
        if is_yes_no(one.answer):
            opening = " ".join(one.question.lower().split()[:OPENING])
            groups.setdefault(opening, {"yes": [], "no": []})[normalise(one.answer)].append(one.id)
    return {
        key for group in groups.values() for keys in group.values() for key in sorted(keys)[min(map(len, group.values())) :]
    }


def denying(taught: Sequence[Taught], *, most: float) -> set[str]:
    """Ids of the last denials ("there is no …" to more than yes or no) without which they are at most that share."""
    denials = sorted(one.id for one in taught if not is_yes_no(one.answer) and yes_no(one.answer) == "no")
    if most == 1 or not denials:
        return set()
    others = len(taught) - len(denials)
    return set(denials[int(most / (1 - most) * others) :])
