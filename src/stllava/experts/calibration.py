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


def check(expert: Expert, given: Sequence[Answers], *, truths: Truths, truth: str) -> JudgeCheck:
    """Measure an expert that is prepared for `given`; `truth` says what `truths` are."""
    flips, first, repeats, longer, requests = Outcomes(), Outcomes(), Outcomes(), Outcomes(), 0
    known, better = Outcomes(), []
    ours: list[int] = []
    theirs: list[int] = []
    images: list[str] = []
    examples: list[Flip] = []
    for answers in given:
        image = answers.images[0] if answers.images else answers.id
        replies = expert.replies(answers) if isinstance(expert, ModelExpert) else []
        requests += len(replies)
        verdict = expert.judge(answers)
        texts = answers.final_answers
        for one, other in compared(answers):
            read = [reply for reply in replies if {one, other} <= {*reply.request.order} and reply.parsed.scores is not None]
            for reply in read:
                wins = _preferred(reply, one, other)
                if wins:
                    first.add((wins > 0) == _in_order(reply, one, other), image)
            straight = [reply for reply in read if _in_order(reply, one, other)]
            turned = [reply for reply in read if not _in_order(reply, one, other)]
            if straight and turned:
                flipped = _preferred(straight[0], one, other) * _preferred(turned[0], one, other) < 0
                flips.add(flipped, image)
                if flipped and len(examples) < EXAMPLES:
                    shown = (texts[one], texts[other])
                    said = (straight[0].words, turned[0].words)
                    examples.append(Flip(image=image, question=answers.question, answers=shown, replies=said))
            for i, reply in enumerate(read):
                again = next((later for later in read[i + 1 :] if later.request.order == reply.request.order), None)
                if again is not None:
                    repeats.add(_preferred(reply, one, other) == _preferred(again, one, other), image)
            sign = _verdict_sign(verdict, one, other)
            if sign is None:
                continue
            gap = len(texts[one]) - len(texts[other])
            fact = truths.get((answers.id, one, other))
            if sign and gap:
                longer.add((sign > 0) == (gap > 0), image)
                if fact:
                    known.add((sign > 0) == (gap > 0), image)
                    better.append((fact > 0) == (gap > 0))
            if fact is not None:
                ours.append(sign)
                theirs.append(fact)
                images.append(image)
    return JudgeCheck(
        expert=expert.name,
        questions=len(given),
        requests=requests,
        flips=rate(flips.hits, flips.images),
        first_wins=rate(first.hits, first.images),
        repeats=rate(repeats.hits, repeats.images),
        longer_wins=rate(longer.hits, longer.images),
        longer_wins_adjusted=balanced(known.hits, better, known.images),
        agreement=kappa(ours, theirs, images),
        truth=truth if ours else "",
        examples=tuple(examples),
    )


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
