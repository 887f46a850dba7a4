"""How sure it is that an answer is right, by an expert that errs and by the policy's own votes together. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from stllava.config import PairOptions
from stllava.data.balance import opening_words
from stllava.data.borrowing import bare
from stllava.errors import StllavaError
from stllava.experts.judged_answers import JudgedAnswers
from stllava.experts.paraphrases import NO_PARAPHRASES, AnswerVerdicts, Paraphrase, Paraphrases, find_paraphrases
from stllava.experts.selection import vote
from stllava.metrics.robust import normalise
from stllava.records import Answers, Judgment

LIKELY = 0.5
"""Probability from which on an answer is taken for the right one, where questions are compared by their answers."""
SMALLEST_ERROR = 1e-6
"""An error that is reckoned with where none was found: odds stay finite."""


def posterior(prior: Sequence[float], odds: Sequence[float]) -> list[float]:
    """The probability that each of several different answers to a question is the right one.

    At most one of them is right. Before the expert speaks, answer i is right with probability p_i, and none of those given
    with the rest, p_0 = 1 - Σ p_i. Its verdicts on different answers are wrong independently, and o_i says how much likelier
    those on answer i are if it is right than if it is wrong. So all verdicts together have some probability Q if none is right,
    Q · o_j if j is, and by Bayes' rule, Q cancelling,

        P(j is right | all verdicts) = p_j o_j / (p_0 + Σ p_i o_i).

    Args:
        prior: The probability of each before the expert speaks, p.
        odds: The likelihood ratio of the verdicts on each, o.
    """
    weights = [chance * ratio for chance, ratio in zip(prior, odds, strict=True)]
    total = 1 - sum(prior) + sum(weights)
    return [weight / total for weight in weights]


class WordingVerdict(NamedTuple):
    """What the expert says of an answer in one wording of a question."""

    called_right: bool
    error: float
    """Share of its verdicts on answers to that wording that are wrong, e, below one half."""
    fresh: float
    """What of it comes anew with every wording, f, from 0 to e."""
    reliability: float = 1.0
    """How probably the answer is right here where it is right there."""


def verdict_odds(verdicts: Sequence[WordingVerdict], *, prior: float) -> float:
    """How much likelier the verdicts on an answer in several wordings are if it is right than if it is wrong.

    The expert has a belief about the answer, which is wrong with probability s whatever the words, and says something else than
    it believes with probability f, in every wording anew: e = s (1 - f) + (1 - s) f. Where kinds of question have another s, it
    believes wrongly in the one with the larger s wherever it does in the other. A wording is the same question with its
    reliability, and one that is less reliable is the same only where the more reliable ones are: what makes a question
    another one on an image makes its wordings so together. What is said in wordings that are another question here is
    as likely as `prior` makes it, whether the answer is right here or not.

    For one verdict of reliability 1 this is (1 - e) / e or its inverse. However many wordings say the same, the odds go no
    further than their s and their reliability allow.

    Args:
        verdicts: The verdict in every wording in which the answer was judged.
        prior: Probability that the answer is right before the expert speaks.
    """
    ranked = sorted(verdicts, key=lambda verdict: -verdict.reliability)
    bounds = [1.0, *(verdict.reliability for verdict in ranked), 0.0]
    same = _said_of_belief(ranked)
    another = _said_of_belief(ranked[::-1])[::-1]  # Of the wordings from each on.
    if_right = if_wrong = 0.0
    for (above, below), (right, wrong), (other_right, other_wrong) in zip(pairwise(bounds), same, another, strict=True):
        other = prior * other_right + (1 - prior) * other_wrong
        if_right += (above - below) * right * other
        if_wrong += (above - below) * wrong * other
    return if_right / if_wrong


def _said_of_belief(verdicts: Sequence[WordingVerdict]) -> list[tuple[float, float]]:
    """How likely the first 0, 1, … verdicts on one fact are if the answer is right and if it is wrong, but for a factor."""
    ratios: list[tuple[float, float]] = []
    for verdict in verdicts:
        fresh = max(verdict.fresh, SMALLEST_ERROR)
        steady = max(0.0, (verdict.error - fresh) / (1 - 2 * fresh))
        ratios.append((steady, (1 - fresh) / fresh if verdict.called_right else fresh / (1 - fresh)))
    right, wrong = [0.0] * (len(ratios) + 1), [0.0] * (len(ratios) + 1)
    # The belief is wrong in the wordings whose s is above a number drawn from 0 to 1.
    for low, high in pairwise(sorted({0.0, 1.0, *(steady for steady, _ in ratios)})):
        if_right = if_wrong = high - low
        right[0] += if_right
        wrong[0] += if_wrong
        for count, (steady, ratio) in enumerate(ratios, 1):
            if steady <= low:
                if_right *= ratio
            else:
                if_wrong *= ratio
            right[count] += if_right
            wrong[count] += if_wrong
    return list(zip(right, wrong, strict=True))


def refuse_unknown_errors(options: PairOptions) -> None:
    """Refuse `min_confidence` without a rate of errors, which would believe the expert in everything.

    Raises:
        StllavaError: Where that is so.
    """
    if options.min_confidence and not options.expert_error:
        raise StllavaError(
            f"min_confidence is {options.min_confidence:g}, and how often the expert errs is not known",
            expected="the share of its verdicts on single answers that are wrong",
            remedy="Give it as expert_error (a run finds it with judge.audit: `expert-audit/result/expert-audit.json`), or set "
            "min_confidence to 0.",
        )


@dataclass(frozen=True)
class ReckonedJudgment:
    """A judgment as it is believed once the expert's errors are reckoned with."""

    judgment: Judgment
    """With scores of 1 or 0 for answers on which all wordings together say otherwise than this one."""
    sure: list[bool]
    """Of every completion, whether it may be chosen."""
    is_overruled: bool = False
    """Whether other wordings changed a score."""


def reckon(
    answers: Answers, judgment: Judgment, *, options: PairOptions, paraphrases: Paraphrases = NO_PARAPHRASES
) -> ReckonedJudgment:
    """How far a judgment is believed; wholly without `min_confidence`, and where it has no score for each answer.

    Answers that say the same are one answer, and the expert calls it right where their mean score reaches
    `min_chosen_score`. One that is empty or was cut off votes for nothing. Before the expert speaks, an answer with k of K
    votes is right with probability k / (K + 1): the votes with one more for "something else". Verdicts that are the votes
    themselves say nothing beyond them, and are believed as they are.
    """
    scores = judgment.scores or ()
    if not options.min_confidence or judgment.is_own_vote or len(scores) != len(answers.completions):
        return ReckonedJudgment(judgment, [True] * len(scores))
    own = answer_verdicts(answers, judgment, options=options)
    elsewhere = paraphrases.of(answers.images, answers.question)
    wordings = [Paraphrase(1.0, bare(answers.question), own), *elsewhere]
    errors = [
        (error := error_about(wording.question, options), paraphrases.fresh_error(wording.question, error))
        for wording in wordings
    ]

    def said_of(text: str) -> list[WordingVerdict]:
        return [
            WordingVerdict(wording.verdicts.called_right[text], *error, wording.reliability)
            for wording, error in zip(wordings, errors, strict=True)
            if text in wording.verdicts.called_right
        ]

    odds, chances = _beliefs(own, said_of)
    said = [vote(text) for text in answers.final_answers]
    sure = [chances.get(text, 0.0) >= options.min_confidence for text in said]
    right = {text: ratio > 1 for text, ratio in odds.items()} if elsewhere else own.called_right
    overruled = {text for text, called in right.items() if called != own.called_right[text]}
    if not overruled:
        return ReckonedJudgment(judgment, sure)
    scores = tuple(float(right[text]) if text in overruled else score for text, score in zip(said, scores, strict=True))
    # Where the expert found no answer right and the other wordings do, its own answer is not needed.
    found = any(right[text] and chances[text] >= options.min_confidence for text in overruled)
    corrected = judgment.model_copy(update={"scores": scores, "correction": None if found else judgment.correction})
    return ReckonedJudgment(corrected, sure, is_overruled=True)


def paraphrases_among(judged: Iterable[JudgedAnswers], *, options: PairOptions) -> Paraphrases:
    """Which of the questions ask the same in other words; none where `pool_paraphrases` or `min_confidence` is not set."""
    if not options.min_confidence or not options.pool_paraphrases:
        return NO_PARAPHRASES

    def likeliest(question: str, verdicts: AnswerVerdicts) -> str | None:
        error = error_about(question, options)
        _, chances = _beliefs(verdicts, lambda text: [WordingVerdict(verdicts.called_right[text], error, error)])
        best = max(chances, key=lambda text: chances[text], default=None)
        return best if best is not None and chances[best] >= LIKELY else None

    told = (
        (answers.images, answers.question, answer_verdicts(answers, judgment, options=options))
        for answers, judgment in judged
        if judgment.scores and len(judgment.scores) == len(answers.completions) and not judgment.is_own_vote
    )
    return find_paraphrases(told, likeliest=likeliest, error=lambda question: error_about(question, options))


def _beliefs(
    own: AnswerVerdicts, said_of: Callable[[str], Sequence[WordingVerdict]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Of every answer that was given the likelihood ratio of the verdicts on it, and the probability that it is right."""
    prior = {text: count / (own.given + 1) for text, count in own.votes.items()}
    odds = {text: verdict_odds(said_of(text), prior=chance) for text, chance in prior.items()}
    return odds, dict(zip(prior, posterior([*prior.values()], [*odds.values()]), strict=True))


def answer_verdicts(answers: Answers, judgment: Judgment, *, options: PairOptions) -> AnswerVerdicts:
    """What the votes and the expert say of the different answers to a question."""
    said: dict[str, list[float]] = {}
    for text, ended, score in zip(answers.final_answers, answers.ended, judgment.scores or (), strict=True):
        if ended and normalise(text):
            said.setdefault(vote(text), []).append(score)
    called = {text: sum(marks) / len(marks) >= options.min_chosen_score for text, marks in said.items()}
    return AnswerVerdicts({text: len(marks) for text, marks in said.items()}, called, len(answers.completions))


def error_about(question: str, options: PairOptions) -> float:
    """The share of the expert's verdicts on answers to a question that are wrong, as far as it is known."""
    return options.expert_errors.get(opening_words(question), options.expert_error)
