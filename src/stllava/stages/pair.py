"""Better answers against worse ones: from judgments to preferences, a pure rule that can be redone in seconds.

Reads answers and judgments; writes `preferences.jsonl`. What has no verdict, ties, or differs by less than the
margin never becomes a pair, nor do two answers that the expert itself could not decide between, or that say nearly
the same. Where the expert found no answer right and said which one is (`judge.correct`), that is the chosen answer, against
the best of the wrong ones. Where people have voted (`stllava review`), their word counts instead of the expert's. Where yes is
chosen more often than no, or no than yes, the surplus is left out, and so is, if asked for, that of longer or shorter answers
chosen. The manifest counts judgments in and pairs out, one question making one pair or, where all pairs are asked for, several;
`dropped` counts the judgments that no pair came of, by cause.
"""

import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import chain
from pathlib import Path
from typing import Literal

from stllava.config import PairOptions
from stllava.data.balance import TaughtAnswer, surplus_of_denials, surplus_of_yes_or_no
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.experts.confidence import may_be_chosen
from stllava.experts.counter_pairs import counter_pairs
from stllava.experts.judged_answers import JudgedAnswers, read_judged_answers
from stllava.experts.question_pairs import question_pairs
from stllava.metrics.robust import normalise
from stllava.records import (
    Answers,
    ImageGain,
    Judgment,
    Lineage,
    Message,
    Preference,
    Question,
    Reference,
    VerdictCause,
    content_id,
)
from stllava.review.overrides import Decision, Decisions, OverruleCause, read_decisions, voted_pair, votes_hash
from stllava.stages.results import PairResult
from stllava.store import Existing, Input, Inputs, nothing_left, open_stage, output_hash, read_manifest, read_records
from stllava.thoughts import final_answer

PairCause = (
    VerdictCause
    | OverruleCause
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
LEAST_WEIGHT = 0.05
REMEDIES = {
    "abstained": "The expert cannot judge these questions: choose another one, or give it more references (--truth).",
    "unparsed": "The expert's replies cannot be read: see `stllava judge --help` for its options, or choose a better one.",
    "tie": (
        "To the expert all answers are equally right or wrong: train the policy longer in sft, answer with a higher "
        "sampling.temperature or more answers (num_answers), or judge with mode pairwise."
    ),
    "same text": "All answers say the same: answer with a higher sampling.temperature or more answers (num_answers).",
    "margin too small": "Lower the margin, or judge with mode pairwise.",
    "nearly the same text": "Raise max_similarity, or answer with a higher sampling.temperature.",
    "chosen answer too bad": "Lower min_chosen_score.",
    "chosen answer not sure enough": "Lower min_confidence, or sample more answers (num_answers).",
    "chosen answer cut off": (
        "The policy does not come to an end: raise answer's sampling.max_new_tokens, or train it longer in sft."
    ),
    "empty answer chosen": "The policy says nothing: train it longer in sft.",
    "surplus of yes or no": "Only one of yes and no was ever chosen: ask more questions, or set balance to false.",
    "surplus of denials": "Raise max_denial_share.",
    "surplus of one length": "Ask more questions, or set balance_length to false.",
}
"""What to do where no pair was made, by the commonest cause."""


@dataclass(frozen=True)
class ScoredPair:
    """Two answers of which one scored higher."""

    chosen: int
    """Index of the better answer among the completions."""
    rejected: int
    """Index of the worse answer."""
    gap: float
    """Difference of their scores, above 0."""


def pair(
    options: PairOptions,
    *,
    answers: Path,
    judgments: Path,
    to: Path,
    gains: Path | None = None,
    questions: Path | None = None,
    votes: Path | None = None,
    existing: Existing = "resume",
) -> PairResult:
    """Turn verdicts into preferences: of each question the best answer against the worst, by what the expert said.

    Ties, abstentions and differences below the margin make no pair and are counted by cause.

    Args:
        options: Which differences count, and how the pairs are balanced.
        answers: Folder of the answers.
        judgments: Folder of the judgments of these answers.
        to: Folder for the preferences (preferences.jsonl).
        gains: Folder of the image gains of these answers, by which pairs are weighed (gain_weight).
        questions: Folder of the questions that were answered, for pairs of questions (question_pairs).
        votes: The review folder of these judgments: what its readers say stands before what the expert said.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where the judgments are not about these answers, or no pair is left.
    """
    if options.gain_weight and gains is None:
        raise StllavaError(
            f"gain_weight is {options.gain_weight:g}, and no image gains are named",
            expected="the folder that image-gain wrote of these answers",
            remedy="Name it (--gains; in a run, set image_gain), or set gain_weight to 0.",
        )
    if options.question_pairs and questions is None:
        raise StllavaError(
            f"question_pairs is {options.question_pairs}, and no questions are named",
            expected="the folder that ask wrote",
            remedy="Name it (--questions), or set question_pairs to 0.",
        )
    inputs: Inputs = {"answers": Input(answers, output_hash), "judgments": Input(judgments, output_hash)}
    inputs |= {"gains": Input(gains, output_hash)} if gains is not None else {}
    inputs |= {"questions": Input(questions, output_hash)} if questions is not None else {}
    inputs |= {"votes": Input(votes, votes_hash)} if votes is not None else {}
    with open_stage("pair", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return PairResult(to, stage.manifest)
        judged = read_judged_answers(answers, judgments)
        decided = read_decisions(votes) if votes is not None else None
        dropped, counted = Dropped(), 0
        taught: list[TaughtAnswer] = []
        judgment_of: dict[str, str] = {}
        for answered, judgment in judged:
            counted += 1
            result = _decided(answered, judgment, decided, options=options)
            if isinstance(result, str):
                dropped.drop(result, f"{answered.question!r} with scores {judgment.scores} {judgment.reason}")
                continue
            for made in result:
                _note(made, taught, judgment_of)
        counter: list[Preference] = []
        if options.counter_pairs:
            believed = [row for row in judged if decided is None or not (decided.refuses(row[0]) or decided.of(row[0]))]
            counter = _counter_pairs(believed, _pairs(judged, decided, options), options=options)
            for made in counter:
                _note(made, taught, judgment_of)

        def left(*gone: set[str]) -> int:
            return len({key for pair_id, key in judgment_of.items() if not any(pair_id in ids for ids in gone)})

        surplus = surplus_of_yes_or_no(taught) if options.balance else set()
        dropped["surplus of yes or no"] = left() - left(surplus)
        denied = surplus_of_denials([row for row in taught if row.id not in surplus], max_share=options.max_denial_share)
        dropped["surplus of denials"] = left(surplus) - left(surplus, denied)

        def kept_pairs(gone: set[str]) -> Iterator[Preference]:
            return (one for one in chain(_pairs(judged, decided, options), counter) if one.id not in gone)

        long = surplus_of_one_length(kept_pairs(surplus | denied)) if options.balance_length else set()
        dropped["surplus of one length"] = left(surplus, denied) - left(surplus, denied, long)
        gone = surplus | denied | long
        if all(row.id in gone for row in taught):
            raise nothing_left(f"{counted} judgments", dropped, remedy=remedy_of(dropped))
        kept: Iterable[Preference] = kept_pairs(gone)
        if options.gain_weight and gains is not None:
            given = {row.id: row for row in read_records(answers, "answers", Answers)}
            kept = weighed(list(kept), given, read_records(gains, "gains", ImageGain), strength=options.gain_weight)
        asking: list[Preference] = []
        if questions is not None:
            informative = set(judgment_of.values())
            asking = _question_pairs(judged, informative, questions, options=options)
        figures = PairFigures()
        stage.write_records("preferences", chain(figures.count(kept), asking))
        measures = figures.measures(judged=counted, surplus=len(surplus) + len(denied) + len(long))
        measures |= {"question_pairs": float(len(asking))} if questions is not None else {}
        made_in_all = len(figures.margins) + len(asking)
        manifest = stage.finish(counts_in=counted, counts_out=made_in_all, dropped=+dropped, measures=measures)
        return PairResult(to, manifest)


def _decided(
    answered: Answers, judgment: Judgment, decided: Decisions | None, *, options: PairOptions
) -> list[Preference] | PairCause:
    """The pairs of a judgment, or of what readers have decided about its answers; or the cause why there is none."""
    result = pairs_of(answered, judgment, options=options)
    if decided is None:
        return result
    if decided.refuses(answered):
        return "readers: bad image"
    decision = decided.of(answered)
    return result if decision is None else pairs_by_votes(answered, judgment, result, decision)


def _pairs(judged: Iterable[JudgedAnswers], decided: Decisions | None, options: PairOptions) -> Iterator[Preference]:
    """All pairs of all judgments, made once more: they are a pure rule, and too many to be held."""
    for answered, judgment in judged:
        result = _decided(answered, judgment, decided, options=options)
        if not isinstance(result, str):
            yield from result


def _note(made: Preference, taught: list[TaughtAnswer], judgment_of: dict[str, str]) -> None:
    """Keep of a pair what decides whether it stays."""
    taught.append(TaughtAnswer(made.id, made.prompt[-1].content, final_answer(made.chosen)))
    judgment_of[made.id] = made.lineage.judgment_id


def weighed(
    pairs: Sequence[Preference], answers: Mapping[str, Answers], gains: Iterable[ImageGain], *, strength: float
) -> list[Preference]:
    """The pairs with weights of mean 1: 1 + strength × tanh(gain of the chosen answer), and 1 where that is not known."""
    known: dict[tuple[str, str], float] = {}
    for row in gains:
        if row.answers_id not in answers:
            raise StllavaError(
                f"image gain {row.id} is about answers {row.answers_id}, which are not among those that are paired",
                expected="the image gains of these answers",
                remedy="Name the folders of one and the same round.",
            )
        for text, gain in zip(answers[row.answers_id].completions, row.gains, strict=True):
            if gain is not None:
                known[row.answers_id, text] = gain
    raw = [1 + strength * math.tanh(known.get((pair.lineage.answers_id, pair.chosen), 0.0)) for pair in pairs]
    mean = sum(raw) / len(raw)
    # Far from its image an answer still counts a little, a weight of 0 being none; where all are that far, all count alike.
    weights = [max(LEAST_WEIGHT, weight / mean) if mean else 1.0 for weight in raw]
    return [pair.model_copy(update={"weight": weight}) for pair, weight in zip(pairs, weights, strict=True)]


def _counter_pairs(judged: Sequence[JudgedAnswers], pairs: Iterable[Preference], *, options: PairOptions) -> list[Preference]:
    """The counter-pairs of all judgments, beside the pairs there are."""
    known = {(pair.lineage.answers_id, final_answer(pair.chosen), final_answer(pair.rejected)) for pair in pairs}
    by_id = {answers.id: (answers, judgment) for answers, judgment in judged}
    made = []
    for key, chosen, rejected in counter_pairs(by_id.values(), known=known, options=options):
        answers, judgment = by_id[key]
        scores, text = judgment.scores or (), answers.completions[chosen]
        margin = scores[chosen] - scores[rejected]
        made.append(_preference(answers, judgment, chosen=text, rejected=rejected, margin=margin))
    return made


def _question_pairs(
    judged: Iterable[JudgedAnswers], informative: set[str], questions: Path, *, options: PairOptions
) -> list[Preference]:
    """The pairs of the questions in the folder that ask wrote."""
    opening = read_manifest(questions).config.get("description_prompt")
    if not isinstance(opening, str):
        raise StllavaError(
            f"{questions} does not say what its questions were asked behind",
            expected="the folder that ask wrote",
            remedy="Name that, or set question_pairs to 0.",
        )
    return question_pairs(
        judged,
        {row.id: row for row in read_records(questions, "questions", Question)},
        informative=informative,
        opening=opening,
        max_pairs=options.question_pairs,
        min_score=options.min_chosen_score,
    )


def remedy_of(dropped: Dropped) -> str:
    """What to do where no pair was made."""
    commonest = dropped.most_common(1)[0][0] if dropped else ""
    return REMEDIES.get(commonest, "Look at the counts of ask, answer and judge: they say where the pairs were lost.")


def pairs_of(answers: Answers, judgment: Judgment, *, options: PairOptions) -> list[Preference] | PairCause:
    """The pairs that a judgment makes of its answers, those that differ most first, or the cause why there is none.

    Two texts make one pair at most, however often they were given. Final answers are compared, behind thoughts. One that
    was cut off is never chosen: how it would have gone on is not known.
    """
    scores = judgment.scores
    if scores is None:
        return judgment.cause or "failed"
    if len(scores) != len(answers.completions):
        return "wrong number of scores"
    undecided = {(row.first, row.second) for row in judgment.comparisons if row.winner is None}
    corrected = [_corrected(answers, judgment, right)] if (right := correction_of(answers, judgment)) is not None else []
    if corrected and options.pairs == "extremes":
        return corrected
    given = _pairs_of_given(
        answers, judgment, scored_pairs(answers.final_answers, scores, undecided=undecided), options=options
    )
    if isinstance(given, str):
        return corrected or given
    return [*corrected, *given][: options.max_pairs_per_question]


def pairs_by_votes(
    answers: Answers, judgment: Judgment, made: list[Preference] | PairCause, decision: Decision
) -> list[Preference] | PairCause:
    """The pairs of a judgment once readers have decided about two of the answers, or the cause why there is none.

    Where they hold the same answer to be better as the expert, its other pairs (`made`) stay; else its verdict on these
    answers is not believed at all.
    """
    voted = voted_pair(answers, decision)
    if isinstance(voted, str):
        return voted
    if not final_answer(voted.chosen):
        return "empty answer chosen"
    if voted.chosen in answers.completions and not answers.ended[answers.completions.index(voted.chosen)]:
        return "chosen answer cut off"
    own = _preference(answers, judgment, chosen=voted.chosen, rejected=voted.rejected, margin=1.0, readers=voted.readers)
    others = made if decision.confirms and not isinstance(made, str) and not own.lineage.correction else []
    both = {final_answer(own.chosen), final_answer(own.rejected)}
    return [own, *(pair for pair in others if {final_answer(pair.chosen), final_answer(pair.rejected)} != both)]


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


def surplus_of_one_length(preferences: Iterable[Preference]) -> set[str]:
    """Ids of the pairs without which longer answers are chosen as often as shorter: of the more frequent, the last ids."""
    chosen: dict[bool, list[str]] = {True: [], False: []}
    for pair in preferences:
        if len(pair.chosen) != len(pair.rejected):
            chosen[len(pair.chosen) > len(pair.rejected)].append(pair.id)
    fewest = min(map(len, chosen.values()))
    return {key for keys in chosen.values() for key in sorted(keys)[fewest:]}


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
    return _preference(answers, judgment, chosen=right, rejected=best, margin=1 - scores[best] if scores[best] < 1 else 1.0)


def _pairs_of_given(
    answers: Answers, judgment: Judgment, ranked: list[ScoredPair], *, options: PairOptions
) -> list[Preference] | PairCause:
    """The pairs among answers that the policy gave."""
    scores, texts, ended = judgment.scores or (), answers.final_answers, answers.ended
    if not ranked:
        return "tie"
    ranked = [pair for pair in ranked if ended[pair.chosen]]
    if not ranked:
        return "chosen answer cut off"
    sure = may_be_chosen(answers, judgment, options=options)
    ranked = [pair for pair in ranked if sure[pair.chosen]]
    if not ranked:
        return "chosen answer not sure enough"
    if options.pairs == "group":
        ranked = [pair for pair in ranked if texts[pair.chosen]]
        weights = group_weights(texts, scores)
        return _group_of(answers, judgment, ranked, weights) or "empty answer chosen"
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
            preferences[both] = _preference(answers, judgment, chosen=chosen, rejected=pair.rejected, margin=pair.gap)
    return list(preferences.values())[: options.max_pairs_per_question] or causes[0]


def group_weights(texts: Sequence[str], scores: Sequence[float]) -> dict[tuple[str, str], float]:
    """The weight of every two different texts, the better one first: their pairs, times the gap, over K σ of the scores."""
    count, times = len(scores), Counter(texts)
    mean = sum(scores) / count
    spread = (sum((score - mean) ** 2 for score in scores) / count) ** 0.5
    mark = dict(zip(texts, scores, strict=True))
    return {
        (one, other): times[one] * times[other] * (mark[one] - mark[other]) / (count * spread)
        for one in times
        for other in times
        if mark[one] > mark[other]
    }


def _group_of(
    answers: Answers, judgment: Judgment, ranked: Sequence[ScoredPair], weights: Mapping[tuple[str, str], float]
) -> list[Preference]:
    """Every two different answers of a question once, with their weights."""
    texts = answers.final_answers
    made: dict[tuple[str, str], Preference] = {}
    for pair in ranked:
        both = (texts[pair.chosen], texts[pair.rejected])
        if both not in made:
            chosen = answers.completions[pair.chosen]
            preference = _preference(answers, judgment, chosen=chosen, rejected=pair.rejected, margin=pair.gap)
            made[both] = preference.model_copy(update={"weight": weights[both]})
    return list(made.values())


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


def _preference(
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
    )
    key = content_id("preference", answers.question, chosen, worse, lineage.model_dump())
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


@dataclass
class PairFigures:
    """Counts pairs as they pass by."""

    margins: "array[float]" = field(default_factory=lambda: array("d"))
    """The margin of each."""
    judgments: set[str] = field(default_factory=set)
    """Ids of the judgments that they come of."""
    longer: int = 0
    corrected: int = 0
    voted: int = 0

    def count(self, pairs: Iterable[Preference]) -> Iterator[Preference]:
        """The pairs, one by one."""
        for made in pairs:
            self.margins.append(made.margin)
            self.judgments.add(made.lineage.judgment_id)
            self.longer += len(made.chosen) > len(made.rejected)
            self.corrected += made.lineage.correction
            self.voted += bool(made.lineage.readers)
            yield made

    def measures(self, *, judged: int, surplus: int) -> dict[str, float]:
        """What the manifest says of them; `surplus` counts the pairs left out so that yes and no are balanced."""
        count, questions = len(self.margins), len(self.judgments)
        return {
            "pair_share": questions / judged if judged else 0.0,
            "pairs_a_question": count / questions if questions else 0.0,
            "surplus_pairs": float(surplus),
            "mean_margin": sum(self.margins) / count if count else 0.0,
            "chosen_longer_share": self.longer / count if count else 0.0,
            **({"corrected_pairs": float(self.corrected)} if self.corrected else {}),
            **({"voted_pairs": float(self.voted)} if self.voted else {}),
        }
