"""Watches a policy that judges itself: how often it is wrong where the truth is known, and whether one answer takes over."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from stllava.data.borrowing import bare
from stllava.experts.expert import Verdict
from stllava.experts.rules.itself import is_right, votes_of, winner_of
from stllava.metrics.agreement import rate
from stllava.records import Answers

OFTEN = 10
"""Questions of one text, for their winners to be compared."""
RISE = 0.1
"""A rise in the share of the commonest winner, since it was first measured, that means that one answer takes over."""
SHIFT = 0.2
"""A change in the share of yes, since it was first measured, that means the same."""


class TruthJudge(Protocol):
    """Whatever knows the truth."""

    def judge(self, answers: Answers) -> Verdict:
        """Score each completion, or abstain."""


@dataclass
class VoteMonitor:
    """Counts the votes on questions as their verdicts pass by."""

    truth: TruthJudge | None = None
    """Who knows right answers to some of the questions; never asked for a verdict that is learned."""
    _questions: int = 0
    _unanimous: int = 0
    _winners: dict[str, Counter[str]] = field(default_factory=dict)
    _errors: list[bool] = field(default_factory=list)
    _images: list[str] = field(default_factory=list)

    def watch(self, verdicts: Iterable[tuple[Answers, Verdict]]) -> Iterator[tuple[Answers, Verdict]]:
        """The verdicts, one by one."""
        for answers, verdict in verdicts:
            self.count(answers, has_verdict=verdict.scores is not None)
            yield answers, verdict

    def count(self, answers: Answers, *, has_verdict: bool) -> None:
        """Count the votes on one question."""
        self._questions += 1
        self._unanimous += max(votes_of(answers).values(), default=0) == len(answers.completions)
        winner = winner_of(answers)
        if winner is not None:
            self._winners.setdefault(bare(answers.question), Counter())[winner.vote] += 1
        if self.truth is not None and has_verdict:
            right = is_right(answers, self.truth.judge(answers))
            if right is not None:
                self._errors.append(not right)
                self._images.append(answers.images[0] if answers.images else answers.id)

    @property
    def measures(self) -> dict[str, float]:
        """What the manifest says of them.

        unanimous_share: of all questions, those whose answers all say the same. commonest_winner_share: of the questions
        whose text was asked at least ten times, those whose winner is the commonest one of that text; winners_a_text: how
        many different winners such a text has on average. yes_share: of winners that are yes or no, those that are yes.
        true_error, true_error_low, true_error_high, true_error_n: of the verdicts on questions whose answer is known, the
        share that calls a wrong answer right, its 95 % interval, and their number.
        """
        figures = {"unanimous_share": self._unanimous / self._questions if self._questions else 0.0}
        often = [winners for winners in self._winners.values() if winners.total() >= OFTEN]
        if often:
            commonest = sum(max(winners.values()) for winners in often)
            figures["commonest_winner_share"] = commonest / sum(winners.total() for winners in often)
            figures["winners_a_text"] = sum(map(len, often)) / len(often)
        yes, no = (sum(winners[side] for winners in self._winners.values()) for side in ("yes", "no"))
        if yes + no:
            figures["yes_share"] = yes / (yes + no)
        error = rate(self._errors, self._images)
        if error is not None:
            figures |= {"true_error": error.value, "true_error_low": error.low, "true_error_high": error.high}
            figures["true_error_n"] = float(error.n)
        return figures


def takeover(first: Mapping[str, float], now: Mapping[str, float]) -> str | None:
    """A sentence where one answer takes over, by the first measures of a run and those of this round; None where none does.

    One does where the commonest winner of question texts that are asked often wins a tenth of the questions more than at
    first, or where the share of yes among the winners has moved by a fifth: the policy then answers the question and not the
    image, and its answers agree all the more. A measure that one of both lacks, as where no text was asked often, says nothing.
    """
    before, after = first.get("commonest_winner_share"), now.get("commonest_winner_share")
    if before is not None and after is not None and after - before >= RISE:
        return (
            f"One answer takes over: the commonest winner of a question text wins {after:.1%} of the questions, "
            f"at first {before:.1%}."
        )
    yes, yes_now = first.get("yes_share"), now.get("yes_share")
    if yes is not None and yes_now is not None and abs(yes_now - yes) >= SHIFT:
        answer = "Yes" if yes_now > yes else "No"
        return f"{answer} takes over: {yes_now:.1%} of the winners that are yes or no are yes, at first {yes:.1%}."
    return None
