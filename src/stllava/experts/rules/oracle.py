"""The expert that knows: judges answers about phantoms by the truth each one was drawn from.

Reads `Truth` records, writes nothing. It abstains where a question is not understood, an image is not known or the
truth cannot decide; it never calls an answer right that says more, or less, than what was asked.
"""

from collections import Counter
from collections.abc import Sequence

from stllava.data.phantom.answer_parser import understand
from stllava.data.phantom.language import NUMBERS, answer
from stllava.data.phantom.questions import NAMES, Query, normal, plural
from stllava.data.phantom.truth import LEVELS, MODALITIES, ORGANS, SIDES, SIZES, Truth
from stllava.experts.expert import FreeExpert, Verdict
from stllava.records import Answers, content_id

RULE = "slots 3"
"""Version of what is understood and how it is scored: change it with either."""
FILLER = frozenset(["a", "an", "the", "it", "its", "is", "are", "there", "this", "that", "on", "in", "at", "of", "with"])
HARMLESS = frozenset({"side", "level", "third", "image", "scan"})
"""Words that may follow a side, a level or a modality without saying more."""
EXTRA = 0.25
"""What each invented or contradictory word costs."""
CEILING = 0.8
"""The most an answer gets that is not quite right."""


def _slot_of() -> dict[str, str]:
    slots = dict.fromkeys(NAMES, "finding") | {plural(name): "finding" for name in NAMES}
    slots |= dict.fromkeys(SIDES, "side") | dict.fromkeys(LEVELS, "level") | dict.fromkeys(SIZES, "size")
    slots |= dict.fromkeys(MODALITIES, "modality") | dict.fromkeys(ORGANS, "region")
    return slots | dict.fromkeys(ORGANS.values(), "organ") | dict.fromkeys(NUMBERS[1:], "count")


SLOT = _slot_of()
"""The slot that each word of an answer fills."""
SINGULAR = {plural(name): name for name in NAMES}


def words(text: str) -> list[str]:
    """The words of an answer that carry meaning, in normal form."""
    return [word for word in normal(text).split() if word not in FILLER]


def _said(text: str) -> Counter[str]:
    """The words that carry meaning, harmless ones left out where others remain."""
    said = words(text)
    return Counter([word for word in said if word not in HARMLESS] or said)


def _facts(query: Query, truth: Truth) -> dict[str, str]:
    """Right words by slot of the answers that can be partly right; empty for all others."""
    place = {"side": str(truth.side), "level": str(truth.level)}
    if query.template == "where":
        return place
    facts = {"finding": truth.finding, "size": str(truth.size), **place}
    if query.template == "describe":
        facts |= {"modality": truth.modality}
        facts |= {"region": truth.region} if SLOT[truth.region] == "region" else {}
    return facts if truth.count == 1 else {**facts, "count": NUMBERS[truth.count]}


def _partial(said: Counter[str], query: Query, truth: Truth) -> float:
    """Share of the slots that are right, less what is invented, said twice or contradictory."""
    facts, told = _facts(query, truth), {"organ": ORGANS[truth.region], "count": "one" if truth.count == 1 else ""}
    filled: dict[str, list[str]] = {}
    for word in said.elements():
        filled.setdefault(SLOT.get(word, "other"), []).append(SINGULAR.get(word, word))
    right = sum(filled.get(slot) == [fact] for slot, fact in facts.items())
    wrong = sum(
        len(given) - 1 if slot in facts else len(given) - (given[0] == told.get(slot, "")) for slot, given in filled.items()
    )
    return max(0.0, min(CEILING, right / len(facts)) - EXTRA * wrong)


def score(completion: str, query: Query, truth: Truth) -> float:
    """1 for a right answer in any harmless order, a part for one with some slots right, 0 for any other."""
    said = _said(completion)
    accepted = answer(query, truth)
    if any(said == _said(right) for right in accepted):
        return 1.0
    partly = (
        query.template in ("where", "report", "describe")
        and truth.finding != "none"
        and not accepted[0].startswith("there is no ")
    )
    return _partial(said, query, truth) if partly and said else 0.0


class Oracle(FreeExpert):
    """An expert that knows the truth of its images."""

    name = "oracle"
    method = "It knows the truth from which each phantom was drawn, and compares every answer with it."
    prompt_hash = content_id("oracle", RULE)

    def __init__(self, truths: Sequence[Truth]) -> None:
        self._truths = {truth.path: truth for truth in truths}

    def objection(self, question: str, images: tuple[str, ...]) -> str | None:
        """Why it could not judge answers to the question; None where it could."""
        case = self._case(question, images)
        return case if isinstance(case, str) else None

    def judge(self, answers: Answers) -> Verdict:
        """Score each completion from 0 to 1, or abstain and say why."""
        return self.score(answers.question, answers.images, answers.final_answers)

    def score(self, question: str, images: tuple[str, ...], completions: Sequence[str]) -> Verdict:
        """Score bare texts as answers to a question, as `judge` does."""
        case = self._case(question, images)
        if isinstance(case, str):
            return Verdict(scores=None, cause="abstained", reason=case)
        query, truth = case
        scores = tuple(score(completion, query, truth) for completion in completions)
        right = answer(query, truth)[0]
        return Verdict(
            scores=scores,
            cause=None,
            reason=f"The right answer is: {right}.",
            correction=right if max(scores, default=0.0) < 1 else None,
        )

    def _case(self, question: str, images: tuple[str, ...]) -> tuple[Query, Truth] | str:
        """What is asked and what is true, or why it cannot be judged."""
        if len(images) != 1 or images[0] not in self._truths:
            return f"image unknown: {', '.join(images) or 'none'}"
        query, truth = understand(question), self._truths[images[0]]
        if query is None:
            return f"question not understood: {question!r}"
        if not answer(query, truth):
            return f"the truth cannot decide: {question!r}"
        return query, truth
