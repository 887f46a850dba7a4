"""Several experts as one: by votes on every two answers, or by the mean of their scores."""

from collections.abc import Iterable, Sequence
from typing import Literal

from stllava.experts.expert import Expert, Verdict
from stllava.experts.orders import distinct
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
        usage: dict[str, int] = {}
        for verdict in verdicts:
            for name, count in verdict.usage.items():
                usage[name] = usage.get(name, 0) + count
        places = distinct(answers.completions)
        contests = [(one, other) for first, one in enumerate(places) for other in places[first + 1 :]]
        votes = {contest: [_vote(verdict, *contest) for verdict in heard] for contest in contests}
        scores = self._scores(answers, heard, votes)
        decided = {contest: self._winner(contest, given, scores) for contest, given in votes.items()}
        agreeing = [vote == decided[contest] for contest, given in votes.items() for vote in given]
        return Verdict(
            scores=scores,
            cause=None if scores is not None else verdicts[0].cause,
            reason=" | ".join(verdict.reason for verdict in heard or verdicts),
            comparisons=tuple(Comparison(first=a, second=b, winner=decided[a, b]) for a, b in contests) if heard else (),
            context=tuple(dict.fromkeys(one for verdict in verdicts for one in verdict.context)),
            raw=(*raw, *(reply for verdict in verdicts for reply in verdict.raw)),
            usage=usage,
            cost=sum(verdict.cost for verdict in verdicts),
            agreement=sum(agreeing) / len(agreeing) if agreeing and len(heard) > 1 else None,
        )

    def _scores(
        self, answers: Answers, heard: Sequence[Verdict], votes: dict[tuple[int, int], list[int | None]]
    ) -> tuple[float, ...] | None:
        if not heard:
            return None
        if self._verdict == "mean":
            columns = zip(*(verdict.scores or () for verdict in heard), strict=True)
            return tuple(sum(column) / len(column) for column in columns)
        points: dict[int, list[float]] = {}
        for (one, other), given in votes.items():
            winner = _majority(given)
            for place in (one, other):
                points.setdefault(place, []).append(0.5 if winner is None else float(winner == place))
        by_text = {answers.completions[place]: sum(won) / len(won) for place, won in points.items()}
        return tuple(by_text.get(text, 0.5) for text in answers.completions)

    def _winner(self, contest: tuple[int, int], given: Sequence[int | None], scores: tuple[float, ...] | None) -> int | None:
        if self._verdict == "majority" or scores is None:
            return _majority(given)
        one, other = contest
        return None if scores[one] == scores[other] else one if scores[one] > scores[other] else other


def _vote(verdict: Verdict, one: int, other: int) -> int | None:
    """Which of two answers a verdict prefers, or None."""
    for comparison in verdict.comparisons:
        if {comparison.first, comparison.second} == {one, other}:
            return comparison.winner
    scores = verdict.scores or ()
    return None if scores[one] == scores[other] else one if scores[one] > scores[other] else other


def _majority(given: Sequence[int | None]) -> int | None:
    """What more than half of the votes say."""
    return next((vote for vote in set(given) if vote is not None and 2 * given.count(vote) > len(given)), None)
