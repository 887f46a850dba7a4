"""Which of the answers to a question become pairs, by what was said of them. Pure: nothing is read or written here."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import mean
from typing import Literal

from stllava.config import PairOptions
from stllava.experts.confidence import ReckonedJudgment, reckon
from stllava.experts.paraphrases import NO_PARAPHRASES, Paraphrases
from stllava.metrics.robust import normalise
from stllava.records import Answers, Judgment, Lineage, Message, Preference, Reference, VerdictCause, content_id

PairCause = (
    VerdictCause
    | Literal[
        "wrong number of scores",
        "tie",
        "chosen answer cut off",
        "chosen answer too bad",
        "chosen answer not sure enough",
        "margin too small",
        "same text",
        "empty answer chosen",
        "nearly the same text",
    ]
)
"""Why a judgment makes no pair."""
SAME_SCORE = 1e-6
"""Scores of a group that differ by no more than this, as 0.1 + 0.2 and 0.3 do, are the same: divided by the spread of a group
that has no other, rounding would weigh as much as a verdict. (GRPO implementations add some 1e-4 to the spread instead.)"""


@dataclass(frozen=True)
class ScoredPair:
    """Two answers of which one scored higher."""

    chosen: int
    """Index of the better answer among the completions."""
    rejected: int
    """Index of the worse answer."""
    gap: float
    """Difference of their scores, above 0."""


def pairs_of(
    answers: Answers, judgment: Judgment, *, options: PairOptions, paraphrases: Paraphrases = NO_PARAPHRASES
) -> list[Preference] | PairCause:
    """The pairs that a judgment makes of its answers, those that differ most first, or the cause why there is none.

    Two texts make one pair at most, however often they were given. Final answers are compared, behind thoughts. One that
    was cut off is never chosen: how it would have gone on is not known.
    """
    return pairs_of_reckoned(answers, reckon(answers, judgment, options=options, paraphrases=paraphrases), options=options)


def pairs_of_reckoned(answers: Answers, reckoned: ReckonedJudgment, *, options: PairOptions) -> list[Preference] | PairCause:
    """The pairs of a judgment as it is believed, as `pairs_of` makes them, or the cause why there is none."""
    scores = reckoned.judgment.scores
    if scores is None:
        return reckoned.judgment.cause or "failed"
    if len(scores) != len(answers.completions):
        return "wrong number of scores"
    made = _pairs_of_scores(answers, reckoned, scores, options=options)
    return made if isinstance(made, str) or not reckoned.is_overruled else [as_overruled(preference) for preference in made]


def as_overruled(preference: Preference) -> Preference:
    """A pair with a note that verdicts in other words had a say in it."""
    return preference.model_copy(update={"lineage": preference.lineage.model_copy(update={"overruled": True})})


def _pairs_of_scores(
    answers: Answers, reckoned: ReckonedJudgment, scores: Sequence[float], *, options: PairOptions
) -> list[Preference] | PairCause:
    """The pairs of answers that have these scores, or the cause why there is none."""
    judgment = reckoned.judgment
    undecided = {(row.first, row.second) for row in judgment.comparisons if row.winner is None}
    corrected = [_corrected(answers, judgment, right)] if (right := correction_of(answers, judgment)) is not None else []
    if corrected and options.pairs == "extremes":
        return corrected
    marks = _mean_scores(answers.final_answers, scores) if options.pairs == "group" else scores
    ranked = scored_pairs(answers.final_answers, marks, undecided=undecided)
    given = _pairs_of_given(answers, reckoned, ranked, scores=marks, options=options)
    if isinstance(given, str):
        return corrected or given
    return [*corrected, *given][: options.max_pairs_per_question]


def correction_of(answers: Answers, judgment: Judgment) -> str | None:
    """The expert's own answer where it found none right and the policy did not give this one; None otherwise."""
    right = judgment.correction
    if judgment.scores is None or right is None or not normalise(right):
        return None
    return None if normalise(right) in map(normalise, answers.final_answers) else right


def scored_pairs(
    completions: Sequence[str], scores: Sequence[float], *, undecided: Collection[tuple[int, int]] = ()
) -> list[ScoredPair]:
    """Every two answers of different score, best against worst first, but those `undecided` between (indices of two texts).

    Of pairs with the same gap, first those of the answers that the policy gave most often, then those given first:
    what it believes most firmly is what a verdict can teach it most about.
    """
    times = Counter(completions)
    blocked = {frozenset((completions[first], completions[second])) for first, second in undecided}

    def order(pair: ScoredPair) -> tuple[float, int, int, int, int]:
        chosen, rejected = completions[pair.chosen], completions[pair.rejected]
        return -pair.gap, -times[chosen], pair.chosen, -times[rejected], pair.rejected

    pairs = (
        ScoredPair(better, worse, high - low)
        for better, high in enumerate(scores)
        for worse, low in enumerate(scores)
        if high > low and frozenset((completions[better], completions[worse])) not in blocked
    )
    return sorted(pairs, key=order)


def group_weights(texts: Sequence[str], scores: Sequence[float]) -> dict[tuple[str, str], float]:
    """The weight of every two texts of different score, the better one first, by which they are the group's advantages.

    An answer's advantage is its score less the mean of the K answers to the question, over their standard deviation: A_i =
    (s_i - mean) / σ (GRPO, Shao et al. 2024, arXiv 2402.03300), σ here that of the K scores and not of a sample. Written over
    pairs, Σ_i A_i x_i = Σ_{i<j} (s_i - s_j)(x_i - x_j) / (K σ): two texts that were given n and m times weigh n m (s_i - s_j) /
    (K σ). Where all scores are the same there is nothing to learn, and no weight; DAPO (Yu et al. 2025, arXiv 2503.14476)
    leaves such groups out as well, and samples others in their place.

    Args:
        texts: The K answers.
        scores: Their scores, equal texts having the same.
    """
    count, times = len(scores), Counter(texts)
    middle = sum(scores) / count
    spread = (sum((score - middle) ** 2 for score in scores) / count) ** 0.5
    mark = dict(zip(texts, scores, strict=True))
    return {
        (one, other): times[one] * times[other] * (mark[one] - mark[other]) / (count * spread)
        for one in times
        for other in times
        if mark[one] - mark[other] > SAME_SCORE
    }


def is_nearly_the_same(first: str, second: str, *, min_similarity: float) -> bool:
    """Whether two texts are so similar: words in common, in the same order, over the mean of both lengths, from 0 to 1.

    Texts that repeat themselves take long to match (13 s for a thousand words), so that is done only where it can decide.
    """
    words, others = normalise(first).split(), normalise(second).split()
    if min_similarity == 1:
        return words == others
    matcher = SequenceMatcher(None, words, others, autojunk=False)
    return (
        matcher.real_quick_ratio() >= min_similarity
        and matcher.quick_ratio() >= min_similarity
        and matcher.ratio() >= min_similarity
    )


def _corrected(answers: Answers, judgment: Judgment, right: str) -> Preference:
    """The expert's correction against the best of the wrong answers, of several the one that was given most often.

    Neither `max_similarity` nor `margin` applies: that so little is wrong is what it teaches.
    """
    scores, texts = judgment.scores or (), answers.final_answers
    times = Counter(texts)
    best = max(range(len(texts)), key=lambda index: (scores[index], times[texts[index]], -index))
    return preference_of(answers, judgment, chosen=right, rejected=best, margin=1 - scores[best] if scores[best] < 1 else 1.0)


def _pairs_of_given(
    answers: Answers, reckoned: ReckonedJudgment, ranked: list[ScoredPair], *, scores: Sequence[float], options: PairOptions
) -> list[Preference] | PairCause:
    """The pairs among answers that the policy gave, which have these scores."""
    texts, ended, judgment = answers.final_answers, answers.ended, reckoned.judgment
    if not ranked:
        return "tie"
    ranked = [pair for pair in ranked if ended[pair.chosen]]
    if not ranked:
        return "chosen answer cut off"
    ranked = [pair for pair in ranked if reckoned.sure[pair.chosen]]
    if not ranked:
        return "chosen answer not sure enough"
    if options.pairs == "group":
        return _group_of(answers, judgment, ranked, scores=scores, options=options)
    if options.pairs == "extremes":
        ranked = ranked[:1]
    preferences: dict[frozenset[str], Preference] = {}
    causes: list[PairCause] = []
    for pair in ranked:
        if scores[pair.chosen] < options.min_chosen_score:
            causes.append("chosen answer too bad")
            continue
        both = frozenset((texts[pair.chosen], texts[pair.rejected]))
        cause = _fault(texts, pair, min_gap=options.margin, max_similarity=options.max_similarity)
        if cause is not None:
            causes.append(cause)
        elif both not in preferences:
            chosen = answers.completions[pair.chosen]
            preferences[both] = preference_of(answers, judgment, chosen=chosen, rejected=pair.rejected, margin=pair.gap)
    return list(preferences.values())[: options.max_pairs_per_question] or causes[0]


def _group_of(
    answers: Answers, judgment: Judgment, ranked: Sequence[ScoredPair], *, scores: Sequence[float], options: PairOptions
) -> list[Preference] | PairCause:
    """Every two different answers of a question once, with their weights, where the group as a whole is worth learning.

    The best of them has `min_chosen_score` at least, and is better than the worst by the `margin`. Two that the expert could
    not decide between, that say nearly the same, or of which the better one may not be chosen are left out: an answer that was
    cut off or is not sure enough may be made less likely, never more.
    """
    texts = answers.final_answers
    first: dict[tuple[str, str], ScoredPair] = {}
    for pair in ranked:
        if pair.gap > SAME_SCORE:
            first.setdefault((texts[pair.chosen], texts[pair.rejected]), pair)
    if not first:
        return "tie"
    chosen = {both: pair for both, pair in first.items() if both[0]}
    if not chosen:
        return "empty answer chosen"
    apart = [
        (both, pair) for both, pair in chosen.items() if not is_nearly_the_same(*both, min_similarity=options.max_similarity)
    ]
    if not apart:
        return "nearly the same text"
    if max(scores[pair.chosen] for _, pair in apart) < options.min_chosen_score:
        return "chosen answer too bad"
    if max(pair.gap for _, pair in apart) < options.margin:
        return "margin too small"
    weights = group_weights(texts, scores)
    return [
        preference_of(
            answers, judgment, chosen=answers.completions[pair.chosen], rejected=pair.rejected, margin=pair.gap
        ).model_copy(update={"weight": weights[both]})
        for both, pair in apart
    ]


def _mean_scores(texts: Sequence[str], scores: Sequence[float]) -> list[float]:
    """The scores, those of equal texts replaced by their mean."""
    given: dict[str, list[float]] = {}
    for text, score in zip(texts, scores, strict=True):
        given.setdefault(text, []).append(score)
    means = {text: mean(marks) for text, marks in given.items()}
    return [means[text] for text in texts]


def _fault(texts: Sequence[str], pair: ScoredPair, *, min_gap: float, max_similarity: float) -> PairCause | None:
    """Why two answers are no pair to learn from."""
    chosen, rejected = texts[pair.chosen], texts[pair.rejected]
    if pair.gap < min_gap:
        return "margin too small"
    if chosen == rejected:
        return "same text"
    if not chosen:
        return "empty answer chosen"
    return "nearly the same text" if is_nearly_the_same(chosen, rejected, min_similarity=max_similarity) else None


def preference_of(
    answers: Answers, judgment: Judgment, *, chosen: str, rejected: int, margin: float, readers: tuple[str, ...] = ()
) -> Preference:
    """A text against the answer with the index `rejected`; a text that is none of the answers is a correction."""
    worse = answers.completions[rejected]
    lineage = Lineage(
        question_id=answers.question_id,
        answers_id=answers.id,
        judgment_id=judgment.id,
        correction=chosen not in answers.completions,
        readers=readers,
        own_vote=judgment.is_own_vote and not readers,
    )
    # Who judged is in the judgment's id.
    key = content_id("preference", answers.question, chosen, worse, lineage.model_dump(exclude={"own_vote"}))
    return Preference(
        id=key,
        images=answers.images,
        prompt=(Message(role="user", content=answers.question),),
        chosen=chosen,
        rejected=worse,
        rejected_ended=answers.ended[rejected],
        margin=margin,
        lineage=lineage,
        reference=_reference(answers, key, chosen=chosen, rejected=worse),
    )


def _reference(answers: Answers, key: str, *, chosen: str, rejected: str) -> Reference | None:
    """What the policy noted of two texts, each where it first knew; None where it did not note both."""
    known: dict[str, float] = {}
    for text, value in zip(answers.completions, answers.log_probabilities, strict=bool(answers.log_probabilities)):
        if value is not None:
            known.setdefault(text, value)
    if chosen not in known or rejected not in known:
        return None
    return Reference(id=key, policy=answers.policy, chosen=known[chosen], rejected=known[rejected])
