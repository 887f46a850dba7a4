"""Which questions an expert is asked when its verdicts are few: chosen over the whole set before anything is paid for. Pure.

Two things make a verdict worth its price. The answers must split: where all say the same, no pair comes of it and little
is learned. And it must not repeat what others tell: of many verdicts on one question text, or on one image, each is worth
less than the one before. `choose` takes, one after another, the question that is worth most given those taken already.
"""

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from stllava.data.borrowing import bare
from stllava.experts.expert import Verdict
from stllava.experts.judged_answers import Asked, asked
from stllava.metrics.robust import normalise, yes_no
from stllava.records import Answers, Comparison, Judgment, content_id

Selection = Literal["informative", "random"]


@dataclass(frozen=True)
class Candidate:
    """A question that may be judged, and how its answers split."""

    answers_id: str
    """The answers to it."""
    text: str
    """The question, in the form in which equal questions are equal."""
    images: tuple[str, ...]
    """What it is about."""
    rivals: tuple[str, ...]
    """The two answers that were given most often, in alphabetical order; one where all agree."""
    entropy: float
    """Of the shares of its answers, in nats: 0 where all agree."""


def candidate(answers: Answers) -> Candidate:
    """How the answers to a question split, equal ones taken together: yes and no as they are read, others by their words."""
    votes = Counter(map(vote, answers.final_answers))
    total = votes.total()
    entropy = -sum(count / total * math.log(count / total) for count in votes.values())
    rivals = sorted(sorted(votes, key=lambda text: (-votes[text], text))[:2])
    return Candidate(answers.id, bare(answers.question), answers.images, tuple(rivals), entropy)


def vote(answer: str) -> str:
    """What an answer says, in the form in which equal answers are equal."""
    return yes_no(answer) or normalise(answer)


def choose(candidates: Sequence[Candidate], budget: int, *, by: Selection = "informative", seed: int = 0) -> list[str]:
    """The ids of the answers to be judged, `budget` of them at most, those worth most first.

    informative: the worth of a question is the entropy of its answers, divided by the square roots of one more than the
    number of questions taken that have the same text, the same text and rival answers, and, in full, the same images.
    Questions whose answers all agree come last, in chance order, which also decides between equals. random: by chance
    alone, to be compared with.

    Args:
        candidates: What may be judged.
        budget: How many may be judged.
        by: The rule.
        seed: Decides chance order, together with the ids.
    """
    budget = min(budget, len(candidates))
    chance = {each.answers_id: content_id("chosen", seed, each.answers_id) for each in candidates}
    if by == "random":
        return heapq.nsmallest(budget, chance, key=lambda key: chance[key])
    texts: Counter[str] = Counter()
    contrasts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    images: Counter[tuple[str, ...]] = Counter()

    def worth(each: Candidate) -> float:
        crowd = (1 + texts[each.text]) * (1 + contrasts[each.text, each.rivals])
        return each.entropy / math.sqrt(crowd) / (1 + images[each.images])

    # Worth only falls as others are taken, so the first whose worth is still what the heap says is the best of all.
    heap = [(-worth(each), chance[each.answers_id], index) for index, each in enumerate(candidates)]
    heapq.heapify(heap)
    taken: list[str] = []
    while len(taken) < budget:
        old, tie, index = heapq.heappop(heap)
        each = candidates[index]
        if (now := -worth(each)) > old:
            heapq.heappush(heap, (now, tie, index))
            continue
        taken.append(each.answers_id)
        texts[each.text] += 1
        contrasts[each.text, each.rivals] += 1
        images[each.images] += 1
    return taken


class KnownVerdicts:
    """What an expert said in earlier rounds, by image and question: it is not asked for the same again."""

    def __init__(self) -> None:
        self._known: dict[Asked, list[tuple[Answers, Judgment]]] = {}

    def add(self, answers: Answers, judgment: Judgment) -> None:
        """Remember a judgment that holds a verdict."""
        if judgment.scores is not None:
            self._known.setdefault(asked(answers.images, answers.question), []).append((answers, judgment))

    def has_any(self, answers: Answers) -> bool:
        """Whether there is a verdict on some answers to the same question about the same images."""
        return asked(answers.images, answers.question) in self._known

    def verdict(self, answers: Answers) -> Verdict | None:
        """The verdict on these answers where one earlier verdict covers every text among them, the newest such; else None.

        One verdict must cover them all, because scores from comparisons mean something among the answers compared alone.
        """
        texts = answers.final_answers
        for before, judgment in reversed(self._known.get(asked(answers.images, answers.question), [])):
            scores = dict(zip(before.final_answers, judgment.scores or (), strict=True))
            if all(text in scores for text in texts):
                return Verdict(
                    scores=tuple(scores[text] for text in texts),
                    cause=None,
                    reason=judgment.reason,
                    comparisons=_moved(judgment.comparisons, before.final_answers, texts),
                    context=judgment.context,
                    agreement=judgment.agreement,
                    correction=judgment.correction,
                )
        return None


def _moved(comparisons: Iterable[Comparison], before: Sequence[str], now: Sequence[str]) -> tuple[Comparison, ...]:
    """Comparisons of texts at the places they have now, those of texts that are not given now left out."""
    moved = []
    for row in comparisons:
        one, other = before[row.first], before[row.second]
        if one in now and other in now:
            first, second = now.index(one), now.index(other)
            winner = None if row.winner is None else first if row.winner == row.first else second
            moved.append(row.model_copy(update={"first": first, "second": second, "winner": winner}))
    return tuple(moved)
