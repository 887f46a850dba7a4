"""Better answers against worse ones: from judgments to preferences, a pure rule that can be redone in seconds.

Reads answers and judgments; writes `preferences.jsonl`, and with `min_confidence` `paraphrases.jsonl`: which questions were
held to ask the same, so that a verdict on one counted for the other. What has no verdict, ties, or differs by less than the
margin never becomes a pair, nor do two answers that the expert itself could not decide between, or that say nearly
the same. Where the expert found no answer right and said which one is (`judge.correct`), that is the chosen answer, against
the best of the wrong ones. Where people have voted (`stllava review`), their word counts instead of the expert's. Where yes is
chosen more often than no, or no than yes, the surplus is left out, and so is, if asked for, that of longer or shorter answers
chosen, a group as a whole. The manifest counts judgments in and pairs out, one question making one pair or, where all pairs are
asked for, several; `dropped` counts the judgments that no pair of answers came of, each by one cause.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from stllava.config import PairOptions
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.experts.answer_pairs import PairCause, as_overruled, pairs_of_reckoned, preference_of
from stllava.experts.confidence import ReckonedJudgment, paraphrases_among, reckon, refuse_unknown_errors
from stllava.experts.counter_pairs import counter_pairs
from stllava.experts.judged_answers import JudgedAnswers, read_judged_answers
from stllava.experts.pair_balance import PairBalance
from stllava.experts.paraphrases import NO_PARAPHRASES, Paraphrases
from stllava.experts.question_pairs import question_pairs
from stllava.records import (
    Answers,
    ImageGain,
    Judgment,
    Preference,
    Question,
)
from stllava.review.overrides import Decision, Decisions, OverruleCause, read_decisions, voted_pair, votes_hash
from stllava.stages.results import PairResult
from stllava.store import Existing, Input, Inputs, nothing_left, open_stage, output_hash, read_manifest, read_records
from stllava.thoughts import final_answer

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
    for name, folder, weight in (("gains", gains, options.gain_weight), ("questions", questions, options.question_pairs)):
        if folder is not None and not weight:
            option = "gain_weight" if name == "gains" else "question_pairs"
            raise StllavaError(
                f"{name} are named, and {option} is 0",
                expected=f"{option} above 0, which alone takes them",
                remedy=f"Set {option}, or leave {name} out.",
            )
    refuse_unknown_errors(options)
    inputs: Inputs = {"answers": Input(answers, output_hash), "judgments": Input(judgments, output_hash)}
    inputs |= {"gains": Input(gains, output_hash)} if gains is not None else {}
    inputs |= {"questions": Input(questions, output_hash)} if questions is not None else {}
    inputs |= {"votes": Input(votes, votes_hash)} if votes is not None else {}
    with open_stage("pair", to, options, inputs=inputs, existing=existing) as stage:
        if stage.manifest is not None:
            return PairResult(to, stage.manifest)
        judged = read_judged_answers(answers, judgments)
        decided = read_decisions(votes) if votes is not None else None
        undecided = judged if decided is None else (row for row in judged if not decided.speaks_of(row[0]))
        rule = PairRule(options, paraphrases_among(undecided, options=options), decided)
        dropped, balance, counted, overruled = Dropped(), PairBalance(options), 0, 0
        missed: dict[str, str] = {}
        for answered, judgment in judged:
            counted += 1
            reckoned = rule.reckoned(answered, judgment)
            overruled += reckoned.is_overruled
            result = rule.pairs(answered, reckoned)
            if isinstance(result, str):
                dropped.drop(result, f"{answered.question!r} with scores {reckoned.judgment.scores} {judgment.reason}")
                missed |= {judgment.id: result} if options.counter_pairs else {}
                continue
            for made in result:
                balance.note(made)
        counter: list[Preference] = []
        if options.counter_pairs:
            believed = [row for row in judged if decided is None or not decided.speaks_of(row[0])]
            counter = _counter_pairs(believed, rule.all_pairs(judged), rule)
            for made in counter:
                balance.note(made)
                if (cause := missed.pop(made.lineage.judgment_id, None)) is not None:
                    dropped[cause] -= 1  # It made a pair after all.

        def all_pairs() -> Iterator[Preference]:
            return chain(rule.all_pairs(judged), counter)

        dropped.update(balance.settle(all_pairs))
        if balance.is_empty:
            raise nothing_left(f"{counted} judgments", dropped, remedy=remedy_of(dropped))
        kept: Iterable[Preference] = filter(balance.keeps, all_pairs())
        if options.gain_weight and gains is not None:
            given = {row.id: row for row in read_records(answers, "answers", Answers)}
            kept = weighed(list(kept), given, read_records(gains, "gains", ImageGain), strength=options.gain_weight)
        asking: list[Preference] = []
        if questions is not None:
            believed_so = ((answered, rule.reckoned(answered, judgment).judgment) for answered, judgment in judged)
            asking = _question_pairs(believed_so, balance.judgments, questions, options=options)
        figures = PairFigures()
        stage.write_records("preferences", chain(figures.count(kept), asking))
        measures = figures.measures(judged=counted, surplus=balance.surplus)
        measures |= {"question_pairs": float(len(asking))} if questions is not None else {}
        if options.pools_wordings:
            same = rule.paraphrases.records()
            stage.write_records("paraphrases", same)
            measures |= {"paraphrases": float(len(same)), "overruled_judgments": float(overruled)}
        made_in_all = len(figures.margins) + len(asking)
        manifest = stage.finish(counts_in=counted, counts_out=made_in_all, dropped=+dropped, measures=measures)
        return PairResult(to, manifest)


@dataclass(frozen=True)
class PairRule:
    """What makes pairs of a judgment."""

    options: PairOptions
    paraphrases: Paraphrases
    """Which questions ask the same in other words."""
    decided: Decisions | None
    """What readers have decided, where they were asked."""

    def pairs(self, answered: Answers, reckoned: ReckonedJudgment) -> list[Preference] | PairCause | OverruleCause:
        """The pairs of a judgment, or of what readers have decided about its answers; or the cause why there is none."""
        result = pairs_of_reckoned(answered, reckoned, options=self.options)
        if self.decided is None:
            return result
        if self.decided.refuses(answered):
            return "readers: bad image"
        decision = self.decided.of(answered)
        return result if decision is None else pairs_by_votes(answered, reckoned.judgment, result, decision)

    def all_pairs(self, judged: Iterable[JudgedAnswers]) -> Iterator[Preference]:
        """All pairs of all judgments, made once more: they are a pure rule, and too many to be held."""
        for answered, judgment in judged:
            result = self.pairs(answered, self.reckoned(answered, judgment))
            if not isinstance(result, str):
                yield from result

    def reckoned(self, answered: Answers, judgment: Judgment) -> ReckonedJudgment:
        """A judgment as it is believed; where readers decided, no other wording overrules what they said."""
        spoken = self.decided is not None and self.decided.speaks_of(answered)
        paraphrases = NO_PARAPHRASES if spoken else self.paraphrases
        return reckon(answered, judgment, options=self.options, paraphrases=paraphrases)


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


def _counter_pairs(judged: Sequence[JudgedAnswers], pairs: Iterable[Preference], rule: PairRule) -> list[Preference]:
    """The counter-pairs of all judgments, beside the pairs there are."""
    known = {(pair.lineage.answers_id, final_answer(pair.chosen), final_answer(pair.rejected)) for pair in pairs}
    by_id = {answers.id: (answers, judgment) for answers, judgment in judged}
    made = []
    for key, chosen, rejected in counter_pairs(by_id.values(), known=known, options=rule.options, paraphrases=rule.paraphrases):
        answers, judgment = by_id[key]
        reckoned, text = rule.reckoned(answers, judgment), answers.completions[chosen]
        scores = reckoned.judgment.scores or ()
        margin = scores[chosen] - scores[rejected]
        preference = preference_of(answers, judgment, chosen=text, rejected=rejected, margin=margin)
        made.append(as_overruled(preference) if reckoned.is_overruled else preference)
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


def pairs_by_votes(
    answers: Answers, judgment: Judgment, made: list[Preference] | PairCause, decision: Decision
) -> list[Preference] | PairCause | OverruleCause:
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
    own = preference_of(answers, judgment, chosen=voted.chosen, rejected=voted.rejected, margin=1.0, readers=voted.readers)
    others = made if decision.confirms and not isinstance(made, str) and not own.lineage.correction else []
    both = {final_answer(own.chosen), final_answer(own.rejected)}
    # Within a group a pair that readers confirm keeps the weight that it has there.
    weight = next((pair.weight for pair in others if {final_answer(pair.chosen), final_answer(pair.rejected)} == both), 1.0)
    rest = (pair for pair in others if {final_answer(pair.chosen), final_answer(pair.rejected)} != both)
    return [own.model_copy(update={"weight": weight}), *rest]


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
