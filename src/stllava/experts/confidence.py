"""How sure it is that an answer is right, by an expert that errs and by the policy's own votes together. Pure."""

from collections.abc import Sequence

from stllava.config import PairOptions
from stllava.data.balance import opening_words
from stllava.errors import StllavaError
from stllava.experts.selection import vote
from stllava.metrics.robust import normalise
from stllava.records import Answers, Judgment


def posterior(votes: Sequence[int], called_right: Sequence[bool], *, answers: int, error: float) -> list[float]:
    """The probability that each of several different answers to a question is the right one.

    Let the policy have answered `answers` times, k_i times with answer i. Before the expert speaks, answer i is right with
    probability p_i = k_i / (answers + 1), and none of those given with the rest, p_0 = 1 - Σ p_i: the votes with one more
    for "something else". At most one of different answers is right, and the expert is wrong about each with probability e,
    whatever it says of the others. Let c_i say whether it calls answer i right, and q_i be the probability of c_i if i is
    wrong: e if c_i, else 1 - e. If none is right, all verdicts together have the probability Q = Π q_i; if j is, its own
    factor changes, and they have Q · o_j with o_j = (1 - e) / e if c_j, else e / (1 - e). By Bayes' rule, Q cancelling,

        P(j is right | all verdicts) = p_j o_j / (p_0 + Σ p_i o_i).

    Both parts are multiplied by e here, so that an expert that never errs (e = 0) is no special case: what it calls right
    then has all of the probability, and if that is nothing, "something else" has.

    Args:
        votes: How often each different answer was given, k.
        called_right: Whether the expert calls it right, c.
        answers: How many answers were given in all, empty ones included.
        error: Share of its verdicts on single answers that are wrong, e, below one half.
    """
    odds = [1 - error if right else error * error / (1 - error) for right in called_right]
    weights = [count / (answers + 1) * factor for count, factor in zip(votes, odds, strict=True)]
    other = (1 - sum(votes) / (answers + 1)) * error
    total = other + sum(weights)
    return [weight / total if total else 0.0 for weight in weights]


def refuse_unknown_errors(options: PairOptions) -> None:
    """Refuse `min_confidence` without a rate of errors, which would believe the expert in everything.

    Raises:
        StllavaError: Where that is so.
    """
    if options.min_confidence and not options.expert_error:
        raise StllavaError(
            f"min_confidence is {options.min_confidence:g}, and how often the expert errs is not known",
            expected="the share of its verdicts on single answers that are wrong",
            remedy="Give it as expert_error (a run finds it with judge.audit, people with `stllava judge-check`), or set "
            "min_confidence to 0.",
        )


def may_be_chosen(answers: Answers, judgment: Judgment, *, options: PairOptions) -> list[bool]:
    """Of every completion, whether the expert and the votes together are sure enough of it; all are without `min_confidence`.

    Answers that say the same are one answer, and the expert calls it right where their mean score reaches
    `min_chosen_score`. One that is empty or was cut off votes for nothing. Verdicts that are the votes themselves say
    nothing beyond them, and are believed as they are.
    """
    scores = judgment.scores or ()
    if not options.min_confidence or judgment.is_own_vote:
        return [True] * len(scores)
    said: dict[str, list[float]] = {}
    for text, ended, score in zip(answers.final_answers, answers.ended, scores, strict=True):
        if ended and normalise(text):
            said.setdefault(vote(text), []).append(score)
    found = posterior(
        [len(marks) for marks in said.values()],
        [sum(marks) / len(marks) >= options.min_chosen_score for marks in said.values()],
        answers=len(scores),
        error=options.expert_errors.get(opening_words(answers.question), options.expert_error),
    )
    sure = {text for text, chance in zip(said, found, strict=True) if chance >= options.min_confidence}
    return [vote(text) in sure for text in answers.final_answers]
