"""No expert: the policy's own answers to a question vote, and what most of them say counts as right.

Reads answers alone and writes nothing; a real expert's verdict costs money, this one costs none and knows nothing that the
policy does not. Two answers say the same where both read as yes, both as no, or their words are equal once normalised. One
that is empty or was cut off votes for nothing. The share of all answers that say what most say is the agreement; below a
threshold, or where two answers have as many votes, there is no verdict.

The threshold is `min_agreement` or, where the policy has answered questions with known answers too, what these say: the
smallest agreement, not below `min_agreement`, of which at least `min_precision` of the winners were right, counting all
questions with that agreement or more. Kinds of question (the same opening words) with enough labels have a threshold of
their own; one that no agreement makes precise enough gets no verdicts.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from stllava.config.experts import ItselfOptions
from stllava.data.balance import opening_words
from stllava.experts.expert import FreeExpert, Verdict
from stllava.experts.rules.reference import ReferenceJudge
from stllava.experts.selection import vote
from stllava.metrics.robust import normalise
from stllava.records import Answers, content_id

ENOUGH = 30
"""Labelled questions that begin alike, for a threshold of their own."""
FEWEST = 10
"""Labelled questions with an agreement or more, for the share of right ones among them to be believed."""
_SMALL = 1e-9


@dataclass(frozen=True)
class Winner:
    """What most answers to a question say."""

    vote: str
    """In the form in which equal answers are equal."""
    agreement: float
    """Share of all answers that say it."""


def winner_of(answers: Answers) -> Winner | None:
    """What most answers say; None where two have as many votes, or none says anything."""
    votes = votes_of(answers)
    first, second = (*votes.most_common(2), ("", 0), ("", 0))[:2]
    return Winner(first[0], first[1] / len(answers.completions)) if first[1] > second[1] else None


def votes_of(answers: Answers) -> Counter[str]:
    """How many answers say each thing; those that are empty or were cut off say nothing."""
    given = zip(answers.final_answers, answers.ended, strict=True)
    return Counter(vote(text) for text, ended in given if ended and normalise(text))


@dataclass(frozen=True)
class LabelledVote:
    """How the vote on a question with a known answer went."""

    opening: str
    """The question's opening words."""
    agreement: float
    """Share of the answers that say what most say."""
    right: bool
    """Whether that is the known answer."""


def labelled_votes(given: Iterable[Answers], labels: ReferenceJudge) -> list[LabelledVote]:
    """How the votes went on all questions that have a known answer and a winner."""
    found: list[LabelledVote] = []
    for answers in given:
        winner, right = winner_of(answers), is_right(answers, labels.judge(answers))
        if winner is not None and right is not None:
            found.append(LabelledVote(opening_words(answers.question), winner.agreement, right))
    return found


def is_right(answers: Answers, truth: Verdict) -> bool | None:
    """Whether what most answers say is right by a verdict that knows; None without a verdict or a winner."""
    winner = winner_of(answers)
    if winner is None or truth.scores is None:
        return None
    scored = zip(answers.final_answers, truth.scores, strict=True)
    return next(score for text, score in scored if vote(text) == winner.vote) == 1


@dataclass(frozen=True)
class Thresholds:
    """The least agreement at which a winner counts as right."""

    overall: float
    """Of all kinds of question without one of their own; infinite where no agreement is precise enough."""
    by_opening: Mapping[str, float] = field(default_factory=dict)
    """Of questions with these opening words."""
    labelled: int = 0
    """Votes on questions with a known answer that they come of."""

    def of(self, question: str) -> float:
        """The threshold of a question."""
        return self.by_opening.get(opening_words(question), self.overall)


def thresholds_of(votes: Sequence[LabelledVote], *, options: ItselfOptions) -> Thresholds:
    """The thresholds that votes on labelled questions give."""
    groups: dict[str, list[LabelledVote]] = {}
    for row in votes:
        groups.setdefault(row.opening, []).append(row)
    own = {opening: _threshold(rows, options) for opening, rows in sorted(groups.items()) if len(rows) >= ENOUGH}
    return Thresholds(_threshold(votes, options), own, labelled=len(votes))


def _threshold(votes: Sequence[LabelledVote], options: ItselfOptions) -> float:
    """The smallest agreement from `min_agreement` on that is right often enough; infinite where none is."""
    for level in sorted({row.agreement for row in votes if row.agreement >= options.min_agreement - _SMALL}):
        rights = [row.right for row in votes if row.agreement >= level]
        if len(rights) >= FEWEST and sum(rights) >= options.min_precision * len(rights):
            return level
    return math.inf


class ItselfJudge(FreeExpert):
    """Scores answers that say what most say 1 and all others 0, where enough of them agree."""

    def __init__(self, thresholds: Thresholds) -> None:
        self.thresholds = thresholds

    @property
    def name(self) -> str:
        """`itself`."""
        return "itself"

    @property
    def method(self) -> str:
        """What it counts, and when it abstains."""
        rule = "There is no expert: an answer counts as right where enough of the policy's answers to the question say the same"
        overall, own = self.thresholds.overall, self.thresholds.by_opening
        if not self.thresholds.labelled and overall < math.inf:
            return f"{rule}, at least {overall:.0%}."
        never = sum(threshold == math.inf for threshold in own.values())
        least = "no agreement is precise enough" if overall == math.inf else f"at least {overall:.0%}"
        kinds = f"; {len(own)} kinds of question have a threshold of their own, {never} of them get no verdict" if own else ""
        return f"{rule}: {least} by {self.thresholds.labelled} labelled questions{kinds}."

    @property
    def prompt_hash(self) -> str:
        """Hash of the rule's version and the thresholds."""
        own: dict[str, JsonValue] = {opening: repr(threshold) for opening, threshold in self.thresholds.by_opening.items()}
        return content_id("itself", 1, repr(self.thresholds.overall), own)

    def judge(self, answers: Answers) -> Verdict:
        """1 for what most answers say, 0 for all others; no verdict where too few agree."""
        winner = winner_of(answers)
        if winner is None:
            return Verdict(scores=None, cause="abstained", reason="no answer has more votes than every other")
        told = f"{winner.agreement:.0%} of the answers say {winner.vote!r}"
        threshold = self.thresholds.of(answers.question)
        if winner.agreement < threshold - _SMALL:
            needed = "no agreement is precise enough here" if threshold == math.inf else f"{threshold:.0%} are needed"
            return Verdict(scores=None, cause="abstained", reason=f"{told}, and {needed}")
        scores = tuple(float(vote(text) == winner.vote) for text in answers.final_answers)
        return Verdict(scores=scores, cause=None, reason=told)
