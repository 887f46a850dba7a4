"""Knowing the judge: an expert's biases and its agreement, measured on a sample of answers. Pure but for the asking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stllava.experts.expert import Expert, Verdict
from stllava.experts.model.model_expert import JudgeReply, ModelExpert
from stllava.experts.model.ordering import contests, distinct
from stllava.metrics.agreement import balanced, kappa, rate
from stllava.records import Answers, Flip, JudgeCheck, Vote, content_id

EXAMPLES = 8

Truths = Mapping[tuple[str, int, int], int]
"""By answers and places of two completions: 1 where the first is better, -1 where the second is, 0 for a tie."""


def sample_of(given: Sequence[Answers], size: int) -> list[Answers]:
    """So many sets of answers with different texts, chosen by their ids; all when there are no more."""
    several = [answers for answers in given if len(distinct(answers.final_answers)) > 1]
    return sorted(several, key=lambda answers: content_id("check", answers.id))[:size]


def truths_of_votes(votes: Sequence[Vote]) -> dict[tuple[str, int, int], int]:
    """People's votes as truths; of several about the same answers what most say, a tie where none is ahead."""
    sums: dict[tuple[str, int, int], int] = {}
    for vote in votes:
        sign = 0 if vote.winner is None else 1 if vote.winner == vote.first else -1
        swapped = vote.first > vote.second
        key = (vote.answers_id, min(vote.first, vote.second), max(vote.first, vote.second))
        sums[key] = sums.get(key, 0) + (-sign if swapped else sign)
    return {key: (total > 0) - (total < 0) for key, total in sums.items()}


def truths_of_expert(expert: Expert, given: Sequence[Answers]) -> dict[tuple[str, int, int], int]:
    """What an expert that knows says of every two different completions."""
    found: dict[tuple[str, int, int], int] = {}
    for answers in given:
        scores = expert.judge(answers).scores
        if scores is not None:
            found |= {(answers.id, one, other): _sign(scores[one] - scores[other]) for one, other in compared(answers)}
    return found


def compared(answers: Answers) -> list[tuple[int, int]]:
    """Every two different completions."""
    return contests(distinct(answers.final_answers))


@dataclass
class Outcomes:
    """What an expert said of comparisons, one entry each, and the image it was about."""

    hits: list[bool] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def add(self, hit: bool, image: str) -> None:
        """Note one."""
        self.hits.append(hit)
        self.images.append(image)


@dataclass
class Observed:
    """What was seen of an expert, comparison by comparison."""

    flips: Outcomes = field(default_factory=Outcomes)
    """Whether the other order made the other answer win."""
    first: Outcomes = field(default_factory=Outcomes)
    """Whether the answer shown first won."""
    repeats: Outcomes = field(default_factory=Outcomes)
    """Whether asking again gave the same."""
    longer: Outcomes = field(default_factory=Outcomes)
    """Whether the longer answer won."""
    longer_where_known: Outcomes = field(default_factory=Outcomes)
    """Whether the longer answer won, where it is known which one is better."""
    better_is_longer: list[bool] = field(default_factory=list)
    """Of these, whether the better answer is the longer one."""
    verdicts: list[int] = field(default_factory=list)
    """What the expert says where the truth is known, ties among it."""
    facts: list[int] = field(default_factory=list)
    """What the truth is there."""
    images: list[str] = field(default_factory=list)
    """The image of each of these."""
    examples: list[Flip] = field(default_factory=list)
    """The first flips."""

    def count_replies(self, replies: Sequence[JudgeReply], answers: Answers, one: int, other: int) -> None:
        """Take the readable replies that compare two completions of `answers`."""
        image = image_of(answers)
        for reply in replies:
            wins = _preferred(reply, one, other)
            if wins:
                self.first.add((wins > 0) == _in_order(reply, one, other), image)
        straight = [reply for reply in replies if _in_order(reply, one, other)]
        turned = [reply for reply in replies if not _in_order(reply, one, other)]
        if straight and turned:
            flipped = _preferred(straight[0], one, other) * _preferred(turned[0], one, other) < 0
            self.flips.add(flipped, image)
            if flipped and len(self.examples) < EXAMPLES:
                shown = (answers.final_answers[one], answers.final_answers[other])
                said = (straight[0].words, turned[0].words)
                self.examples.append(Flip(image=image, question=answers.question, answers=shown, replies=said))
        for i, reply in enumerate(replies):
            again = next((later for later in replies[i + 1 :] if later.request.order == reply.request.order), None)
            if again is not None:
                self.repeats.add(_preferred(reply, one, other) == _preferred(again, one, other), image)

    def count_verdict(self, sign: int, fact: int | None, *, longer: int, image: str) -> None:
        """Take a verdict on two completions; `longer` has the sign of their difference in length."""
        if sign and longer:
            self.longer.add(sign == longer, image)
            if fact:
                self.longer_where_known.add(sign == longer, image)
                self.better_is_longer.append(fact == longer)
        if fact is not None:
            self.verdicts.append(sign)
            self.facts.append(fact)
            self.images.append(image)


def check(expert: Expert, given: Sequence[Answers], *, truths: Truths, truth: str) -> JudgeCheck:
    """Measure an expert that is prepared for `given`; `truth` says what `truths` are."""
    seen, requests = Observed(), 0
    for answers in given:
        replies = expert.replies(answers) if isinstance(expert, ModelExpert) else []
        requests += len(replies)
        verdict, texts = expert.judge(answers), answers.final_answers
        readable = [reply for reply in replies if reply.parsed.scores is not None]
        for one, other in compared(answers):
            seen.count_replies([reply for reply in readable if {one, other} <= {*reply.request.order}], answers, one, other)
            sign = _verdict_sign(verdict, one, other)
            if sign is not None:
                longer, fact = _sign(len(texts[one]) - len(texts[other])), truths.get((answers.id, one, other))
                seen.count_verdict(sign, fact, longer=longer, image=image_of(answers))
    known = seen.longer_where_known
    return JudgeCheck(
        expert=expert.name,
        questions=len(given),
        requests=requests,
        flips=rate(seen.flips.hits, seen.flips.images),
        first_wins=rate(seen.first.hits, seen.first.images),
        repeats=rate(seen.repeats.hits, seen.repeats.images),
        longer_wins=rate(seen.longer.hits, seen.longer.images),
        longer_wins_adjusted=balanced(known.hits, seen.better_is_longer, known.images),
        agreement=kappa(seen.verdicts, seen.facts, seen.images),
        truth=truth if seen.verdicts else "",
        examples=tuple(seen.examples),
    )


def image_of(answers: Answers) -> str:
    """What questions are clustered by: the first image, or the answers themselves where there is none."""
    return answers.images[0] if answers.images else answers.id


def _in_order(reply: JudgeReply, one: int, other: int) -> bool:
    """Whether a reply saw the one before the other."""
    return reply.request.order.index(one) < reply.request.order.index(other)


def _preferred(reply: JudgeReply, one: int, other: int) -> int:
    """1 where a reply prefers the one, -1 where the other."""
    scores = reply.parsed.scores or ()
    return _sign(scores[reply.request.order.index(one)] - scores[reply.request.order.index(other)])


def _verdict_sign(verdict: Verdict, one: int, other: int) -> int | None:
    """1, -1 or, for a tie, 0; None without a verdict."""
    for comparison in verdict.comparisons:
        if (comparison.first, comparison.second) == (one, other):
            if comparison.cause is not None:
                return None
            return 0 if comparison.winner is None else 1 if comparison.winner == one else -1
    return None if verdict.scores is None else _sign(verdict.scores[one] - verdict.scores[other])


def _sign(gap: float) -> int:
    return (gap > 0) - (gap < 0)
