"""Better answers against worse ones: from judgments to preferences, a pure rule that can be redone in seconds.

Reads answers and judgments; writes `preferences.jsonl`. What has no verdict, ties, or differs by less than the
margin never becomes a pair, nor do two answers that the expert itself could not decide between, or that say nearly
the same. Where yes is chosen more often than no, or no than yes, the surplus is left out, and so is, if asked for,
that of longer or shorter answers chosen. The manifest counts judgments in and pairs out, one question making one pair
or, where all pairs are asked for, several; `dropped` counts the judgments that no pair came of, by cause.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Literal

from stllava.config import PairOptions
from stllava.data.balance import Taught, denying, unbalanced
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.metrics.robust import normalise
from stllava.records import Answers, Judgment, Lineage, Message, Preference, Reference, VerdictCause, content_id
from stllava.stages.results import PairResult
from stllava.store import Existing, Input, Inputs, nothing_left, open_stage, output_hash, read_records
from stllava.thoughts import final_answer

PairCause = (
    VerdictCause
    | Literal[
        "wrong number of scores",
        "tie",
        "chosen answer cut off",
        "chosen answer too bad",
        "margin too small",
        "same text",
        "empty answer chosen",
        "nearly the same text",
    ]
)
"""Why a judgment makes no pair."""
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
class Contest:
    """Two answers of which one scored higher."""

    chosen: int
    """Place of the better one among the completions."""
    rejected: int
    """Place of the worse one."""
    gap: float
    """Difference of their scores, above 0."""


def pair(options: PairOptions, *, answers: Path, judgments: Path, to: Path, existing: Existing = "resume") -> PairResult:
    """Turn verdicts into preferences: of each question the best answer against the worst, by what the expert said.

    Ties, abstentions and differences below the margin make no pair and are counted by cause.

    Args:
        options: Which differences count, and how the pairs are balanced.
        answers: Folder of the answers.
        judgments: Folder of the judgments of these answers.
        to: Folder for the preferences (preferences.jsonl).
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where the judgments are not about these answers, or no pair is left.
    """
    inputs: Inputs = {"answers": Input(answers, output_hash), "judgments": Input(judgments, output_hash)}
    with open_stage("pair", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return PairResult(to, stage.manifest)
        given = {one.id: one for one in read_records(answers, "answers", Answers)}
        judged = read_records(judgments, "judgments", Judgment)
        dropped = Dropped()
        made: list[Preference] = []
        for judgment in judged:
            if judgment.answers_id not in given:
                raise StllavaError(
                    f"judgment {judgment.id} is about answers {judgment.answers_id}, which {answers} does not hold",
                    expected="the judgments of these answers",
                    remedy="Name the folders of one and the same round.",
                )
            answered = given[judgment.answers_id]
            found = pairs_of(answered, judgment, options=options)
            if isinstance(found, str):
                dropped.drop(found, f"{answered.question!r} with scores {judgment.scores} {judgment.reason}")
            else:
                made += found
        taught = [Taught(one.id, one.prompt[-1].content, final_answer(one.chosen)) for one in made]
        surplus = unbalanced(taught) if options.balance else set()
        fair = [one for one in made if one.id not in surplus]
        dropped["surplus of yes or no"] = _questions(made) - _questions(fair)
        denied = denying([one for one in taught if one.id not in surplus], most=options.max_denial_share)
        even = [one for one in fair if one.id not in denied]
        dropped["surplus of denials"] = _questions(fair) - _questions(even)
        long = unbalanced_length(even) if options.balance_length else set()
        kept = [one for one in even if one.id not in long]
        dropped["surplus of one length"] = _questions(even) - _questions(kept)
        if not kept:
            raise nothing_left(f"{len(judged)} judgments", dropped, remedy=remedy_of(dropped))
        stage.write_records("preferences", kept)
        measures = _measures(kept, judged=len(judged), surplus=len(surplus) + len(denied) + len(long))
        manifest = stage.finish(counts_in=len(judged), counts_out=len(kept), dropped=+dropped, measures=measures)
        return PairResult(to, manifest)


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
    undecided = {(one.first, one.second) for one in judgment.comparisons if one.winner is None}
    texts, ended = answers.final_answers, answers.ended
    ranked = contests(texts, scores, undecided=undecided)
    if not ranked:
        return "tie"
    ranked = [one for one in ranked if ended[one.chosen]]
    if not ranked:
        return "chosen answer cut off"
    if options.pairs == "extremes":
        ranked = ranked[:1]
    made: dict[frozenset[str], Preference] = {}
    causes: list[PairCause] = []
    for one in ranked:
        both = frozenset((texts[one.chosen], texts[one.rejected]))
        bad = scores[one.chosen] < options.min_chosen_score
        cause = "chosen answer too bad" if bad else _fault(texts, one, margin=options.margin, alike=options.max_similarity)
        if cause is not None:
            causes.append(cause)
        elif both not in made:
            made[both] = _preference(answers, judgment, contest=one)
    return list(made.values())[: options.max_pairs_per_question] or causes[0]


def contests(
    completions: Sequence[str], scores: Sequence[float], *, undecided: Collection[tuple[int, int]] = ()
) -> list[Contest]:
    """Every two answers of different score, best against worst first, but those `undecided` between (places of two texts).

    Of contests with the same gap, first those of the answers that the policy gave most often, then those given first:
    what it believes most firmly is what a verdict can teach it most about.
    """
    times = Counter(completions)
    blocked = {frozenset((completions[one], completions[other])) for one, other in undecided}

    def order(one: Contest) -> tuple[float, int, int, int, int]:
        chosen, rejected = completions[one.chosen], completions[one.rejected]
        return -one.gap, -times[chosen], one.chosen, -times[rejected], one.rejected

    made = (
        Contest(better, worse, high - low)
        for better, high in enumerate(scores)
        for worse, low in enumerate(scores)
        if high > low and frozenset((completions[better], completions[worse])) not in blocked
    )
    return sorted(made, key=order)


def unbalanced_length(preferences: Iterable[Preference]) -> set[str]:
    """Ids of the pairs without which longer answers are chosen as often as shorter: of the more frequent, the last ids."""
    chosen: dict[bool, list[str]] = {True: [], False: []}
    for one in preferences:
        if len(one.chosen) != len(one.rejected):
            chosen[len(one.chosen) > len(one.rejected)].append(one.id)
    fewest = min(map(len, chosen.values()))
    return {key for keys in chosen.values() for key in sorted(keys)[fewest:]}


def nearly_the_same(one: str, other: str, *, alike: float) -> bool:
    """Whether two texts are so alike: words in common, in the same order, over the mean of both lengths, from 0 to 1.

    Texts that repeat themselves take long to match (13 s for a thousand words), so that is done only where it can decide.
    """
    words, others = normalise(one).split(), normalise(other).split()
    if alike == 1:
        return words == others
    matched = SequenceMatcher(None, words, others, autojunk=False)
    return matched.real_quick_ratio() >= alike and matched.quick_ratio() >= alike and matched.ratio() >= alike


def _fault(texts: Sequence[str], contest: Contest, *, margin: float, alike: float) -> PairCause | None:
    """Why two answers are no pair."""
    chosen, rejected = texts[contest.chosen], texts[contest.rejected]
    if contest.gap < margin:
        return "margin too small"
    if chosen == rejected:
        return "same text"
    if not chosen:
        return "empty answer chosen"
    return "nearly the same text" if nearly_the_same(chosen, rejected, alike=alike) else None


def _preference(answers: Answers, judgment: Judgment, *, contest: Contest) -> Preference:
    chosen, rejected = answers.completions[contest.chosen], answers.completions[contest.rejected]
    lineage = Lineage(question_id=answers.question_id, answers_id=answers.id, judgment_id=judgment.id)
    key = content_id("preference", answers.question, chosen, rejected, lineage.model_dump())
    return Preference(
        id=key,
        images=answers.images,
        prompt=(Message(role="user", content=answers.question),),
        chosen=chosen,
        rejected=rejected,
        rejected_ended=answers.ended[contest.rejected],
        margin=contest.gap,
        lineage=lineage,
        reference=_reference(answers, key, chosen=chosen, rejected=rejected),
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


def _questions(preferences: Iterable[Preference]) -> int:
    """How many judgments the pairs come of."""
    return len({one.lineage.judgment_id for one in preferences})


def _measures(preferences: Collection[Preference], *, judged: int, surplus: int) -> dict[str, float]:
    """What the manifest says of the pairs; `surplus` counts the pairs left out so that yes and no are balanced."""
    count, questions = len(preferences), _questions(preferences)
    longer = sum(len(one.chosen) > len(one.rejected) for one in preferences)
    return {
        "pair_share": questions / judged if judged else 0.0,
        "pairs_a_question": count / questions if questions else 0.0,
        "surplus_pairs": float(surplus),
        "mean_margin": sum(one.margin for one in preferences) / count if count else 0.0,
        "chosen_longer_share": longer / count if count else 0.0,
    }
