"""How sure it is that an answer is right, by an expert that errs and by the policy's own votes together. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from stllava.config import PairOptions
from stllava.data.balance import opening_words
from stllava.data.borrowing import bare
from stllava.errors import StllavaError
from stllava.experts.error_topics import words_named, words_of
from stllava.experts.judged_answers import JudgedAnswers
from stllava.experts.paraphrases import NO_PARAPHRASES, AnswerErrors, AnswerVerdicts, Paraphrase, Paraphrases, find_paraphrases
from stllava.experts.selection import vote
from stllava.metrics.robust import normalise
from stllava.records import Answers, Judgment

LIKELY = 0.5
"""Probability from which on an answer is taken for the right one, where questions are compared by their answers."""
SMALLEST_ERROR = 1e-6
"""An error that is reckoned with where none was found."""


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
    errors: AnswerErrors
    """How often it calls right answers to that wording wrong, m, and wrong ones right, a."""
    fresh: float
    """What of either comes anew with every wording, f, below one half."""
    reliability: float = 1.0
    """How probably the answer is right here where it is right there."""


def verdict_odds(verdicts: Sequence[WordingVerdict], *, prior: float) -> float:
    """How much likelier the verdicts on an answer in several wordings are if it is right than if it is wrong.

    The expert has a belief about the answer, which is wrong with probability s whatever the words, and says something else than
    it believes with probability f, in every wording anew: m = s (1 - f) + (1 - s) f of a right answer, and the same of a
    wrong one with a. Where kinds of question have another s, it believes wrongly in the one with the larger s wherever it does
    in the other. A wording is the same question with its reliability, and one that is less reliable is the same only where the
    more reliable ones are: what makes a question another one on an image makes its wordings so together. What is said in
    wordings that are another question here is as likely as `prior` makes it, whether the answer is right here or not.

    One verdict of reliability 1 that calls an answer right has the odds (1 - m) / a, and one that calls it wrong m / (1 - a).
    However many wordings say the same, the odds go no further than their s and their reliability allow.

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
    ratios: list[float] = []
    misses, false_alarms = list[float](), list[float]()
    for verdict in verdicts:
        fresh = min(max(verdict.fresh, SMALLEST_ERROR), 0.5 - SMALLEST_ERROR)  # Odds stay finite.
        ratios.append((1 - fresh) / fresh if verdict.called_right else fresh / (1 - fresh))
        for steady, error in zip((misses, false_alarms), verdict.errors, strict=True):
            steady.append(min(1.0, max(0.0, (error - fresh) / (1 - 2 * fresh))))
    right = _said_of_answer(misses, ratios, is_right=True)
    wrong = _said_of_answer(false_alarms, ratios, is_right=False)
    return list(zip(right, wrong, strict=True))


def _said_of_answer(steady: Sequence[float], ratios: Sequence[float], *, is_right: bool) -> list[float]:
    """How likely the first 0, 1, … verdicts are of an answer that is right, or wrong, where so many beliefs are wrong.

    A verdict's factor is its likelihood where the expert believes the answer to be wrong.
    """
    likelihoods = [0.0] * (len(ratios) + 1)
    # The belief is wrong in the wordings whose s is above a number drawn from 0 to 1.
    for low, high in pairwise(sorted({0.0, 1.0, *steady})):
        likelihood = high - low
        likelihoods[0] += likelihood
        for count, (share, ratio) in enumerate(zip(steady, ratios, strict=True), 1):
            if (share <= low) == is_right:
                likelihood *= ratio
            likelihoods[count] += likelihood
    return likelihoods


def refuse_unknown_errors(options: PairOptions) -> None:
    """Refuse `min_confidence` without a rate of errors, which would believe the expert in everything, and topics of no word.

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
    empty = [topic for topic in options.expert_errors_about if not words_named(topic)]
    if empty:
        raise StllavaError(
            f"expert_errors_about names {empty[0]!r}, which is no word that counts",
            expected="what answers or questions name, as glioma",
            remedy="Take it out.",
        )


@dataclass(frozen=True)
class ReckonedJudgment:
    """A judgment as it is believed once the expert's errors are reckoned with."""

    judgment: Judgment
    """With scores of 1 or 0 for answers on which all wordings together say otherwise than this one, and without a correction
    that names what the expert is mostly wrong about."""
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

    def said_of(text: str) -> list[WordingVerdict]:
        return [
            WordingVerdict(
                wording.verdicts.called_right[text],
                errors := errors_about(wording.question, text, options),
                paraphrases.fresh_error(wording.question, errors),
                wording.reliability,
            )
            for wording in wordings
            if text in wording.verdicts.called_right
        ]

    odds, chances = _beliefs(own, said_of)
    said = [vote(text) for text in answers.final_answers]
    sure = [chances.get(text, 0.0) >= options.min_confidence for text in said]
    called_somewhere = {text for wording in wordings for text, is_right in wording.verdicts.called_right.items() if is_right}
    # Where an expert errs more often than not, a verdict speaks for its contrary; none is turned into it.
    right = {text: ratio > 1 and text in called_somewhere for text, ratio in odds.items()} if elsewhere else own.called_right
    overruled = {text for text, called in right.items() if called != own.called_right[text]}
    # Where the expert found no answer right and the other wordings do, its own answer is not needed.
    needed = not any(right[text] and chances[text] >= options.min_confidence for text in overruled)
    correction = judgment.correction if needed and _may_correct(answers, judgment, options=options) else None
    if not overruled and correction == judgment.correction:
        return ReckonedJudgment(judgment, sure)
    scores = tuple(float(right[text]) if text in overruled else score for text, score in zip(said, scores, strict=True))
    corrected = judgment.model_copy(update={"scores": scores, "correction": correction})
    return ReckonedJudgment(corrected, sure, is_overruled=bool(overruled))


def _may_correct(answers: Answers, judgment: Judgment, *, options: PairOptions) -> bool:
    """Whether the expert's own answer may be learned: not where its verdicts on such an answer say nothing."""
    correction = judgment.correction
    return correction is None or not errors_about(bare(answers.question), vote(correction), options).say_nothing


def paraphrases_among(judged: Iterable[JudgedAnswers], *, options: PairOptions) -> Paraphrases:
    """Which of the questions ask the same in other words; none where `pool_paraphrases` or `min_confidence` is not set."""
    if not options.pools_wordings:
        return NO_PARAPHRASES

    def likeliest(question: str, verdicts: AnswerVerdicts) -> str | None:
        def said_of(text: str) -> list[WordingVerdict]:
            errors = errors_about(question, text, options)
            return [WordingVerdict(verdicts.called_right[text], errors, fresh=errors.most_fresh)]

        _, chances = _beliefs(verdicts, said_of)
        best = max(chances, key=lambda text: chances[text], default=None)
        return best if best is not None and chances[best] >= LIKELY else None

    told = (
        (answers.images, answers.question, answer_verdicts(answers, judgment, options=options))
        for answers, judgment in judged
        if judgment.scores and len(judgment.scores) == len(answers.completions) and not judgment.is_own_vote
    )
    return find_paraphrases(told, likeliest=likeliest, errors=lambda question, answer: errors_about(question, answer, options))


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


def errors_about(question: str, answer: str, options: PairOptions) -> AnswerErrors:
    """How often the expert is wrong about such an answer to a question, as far as it is known.

    What the question or the answer names goes before how the question begins, and of several topics the first, as they are
    counted in an audit.
    """
    if options.expert_errors_about:
        named = words_of(question, answer)
        for topic, errors in options.expert_errors_about.items():
            if words_named(topic) <= named:
                return AnswerErrors(*errors)
    error = options.expert_errors.get(opening_words(question), options.expert_error)
    return AnswerErrors(error, error)
