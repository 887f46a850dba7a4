"""Several experts as one: by votes on every two answers, or by the mean of their scores."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from stllava.experts.expert import Expert, Verdict
from stllava.experts.model.ordering import better, contests, distinct, wins
from stllava.records import Answers, Comparison, content_id


class Panel:
    """Judges as its members do together; where none has a verdict, nor has it."""

    def __init__(self, members: Sequence[Expert], *, verdict: Literal["majority", "mean"]) -> None:
        """Decide by majority of the members that have a verdict, or by the mean of their scores."""
        self.members, self._verdict = tuple(members), verdict

    @property
    def name(self) -> str:
        """Its members."""
        return f"panel of {', '.join(member.name for member in self.members)}"

    @property
    def method(self) -> str:
        """How it decides."""
        majority = "an answer beats another where more than half of those with a verdict say so"
        how = majority if self._verdict == "majority" else "their scores are averaged"
        return f"It is a panel of {len(self.members)} experts: {how}."

    @property
    def prompt_hash(self) -> str:
        """Hash of its members' rules and its own."""
        return content_id("panel", self._verdict, [[member.name, member.prompt_hash] for member in self.members])

    @property
    def damage(self) -> str:
        """What is lost of its members' reply logs; empty where nothing is."""
        return " ".join(filter(None, (member.damage for member in self.members)))

    @property
    def cost(self) -> float:
        """US dollars that its members' verdicts have cost."""
        return sum(member.cost for member in self.members)

    def can_judge(self, answers: Answers) -> bool:
        """Whether any of its members can."""
        return any(member.can_judge(answers) for member in self.members)

    def max_cost_of(self, answers: Answers) -> float:
        """US dollars that all members' verdicts cost at most."""
        return sum(member.max_cost_of(answers) for member in self.members)

    def is_ready(self, answers: Answers) -> bool:
        """Whether all its members are."""
        return all(member.is_ready(answers) for member in self.members)

    def prepare(self, given: Iterable[Answers]) -> None:
        """Prepare every member, one after the other."""
        for member in self.members:
            member.prepare(given)

    def judge(self, answers: Answers) -> Verdict:
        """What the members say together."""
        verdicts = [member.judge(answers) for member in self.members]
        heard = [verdict for verdict in verdicts if verdict.scores is not None]
        raw = tuple(
            f"{member.name}: {'no verdict, ' + str(verdict.cause) if verdict.scores is None else verdict.scores}"
            for member, verdict in zip(self.members, verdicts, strict=True)
        )
        usage: Counter[str] = Counter()
        for verdict in verdicts:
            usage.update(verdict.usage)
        places = distinct(answers.final_answers)
        votes = {contest: [_vote(verdict, *contest) for verdict in heard] for contest in contests(places)}
        means = tuple(sum(column) / len(column) for column in zip(*(verdict.scores or () for verdict in heard), strict=True))
        decided = {
            contest: _majority(given) if self._verdict == "majority" else better(means, *contest)
            for contest, given in (votes.items() if heard else ())
        }
        comparisons = tuple(Comparison(first=a, second=b, winner=winner) for (a, b), winner in decided.items())
        scores = None
        if heard and (self._verdict == "mean" or len(places) > 1):
            scores = means if self._verdict == "mean" else _scores(answers, comparisons)
        agreeing = [vote == winner for contest, winner in decided.items() for vote in votes[contest]]
        return Verdict(
            scores=scores,
            cause=None if scores is not None else "same text" if len(places) == 1 else verdicts[0].cause,
            reason=" | ".join(verdict.reason for verdict in heard or verdicts),
            comparisons=comparisons,
            context=tuple(dict.fromkeys(one for verdict in verdicts for one in verdict.context)),
            raw=(*raw, *(reply for verdict in verdicts for reply in verdict.raw)),
            usage=dict(usage),
            cost=sum(verdict.cost for verdict in verdicts),
            correction=next((verdict.correction for verdict in heard if verdict.correction is not None), None),
            agreement=sum(agreeing) / len(agreeing) if agreeing and len(heard) > 1 else None,
        )


def _vote(verdict: Verdict, one: int, other: int) -> int | None:
    """Which of two answers a verdict prefers, or None."""
    for comparison in verdict.comparisons:
        if {comparison.first, comparison.second} == {one, other}:
            return comparison.winner
    return better(verdict.scores or (), one, other)


def _scores(answers: Answers, comparisons: Sequence[Comparison]) -> tuple[float, ...]:
    """Each completion's share of won comparisons."""
    texts = answers.final_answers
    by_text = {texts[place]: share for place, share in wins(comparisons).items()}
    return tuple(by_text[text] for text in texts)


def _majority(given: Sequence[int | None]) -> int | None:
    """What more than half of the votes say."""
    return next((vote for vote in set(given) if vote is not None and 2 * given.count(vote) > len(given)), None)
