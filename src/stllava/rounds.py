"""The rounds of a run: what is asked, answered, judged, paired and learned in each, and what is gathered after the last.

`Rounds` knows what has been judged and spent so far; which policy is the best, and when to stop, is `pipeline`'s to decide.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stllava.config import DpoOptions, ImageGainOptions, JudgeOptions, PairOptions, SftOptions
from stllava.data.prepare import DataSet
from stllava.errors import NothingLeftError
from stllava.experts.vote_monitor import takeover
from stllava.launch import launched
from stllava.recipe import RunOptions
from stllava.records import content_id
from stllava.review.voted_answers import voted_folders
from stllava.round_budget import RoundBudget, has_less, with_share_of
from stllava.rundir import FINAL, RoundStage, RunDir, round_name
from stllava.stages.answer import answer
from stllava.stages.ask import ask, request_descriptions
from stllava.stages.calibrate import ask_labelled, audit_expert, audit_warnings, error_of, with_errors
from stllava.stages.distill import distill
from stllava.stages.dpo import dpo
from stllava.stages.final_data import final_data
from stllava.stages.image_gain import image_gain
from stllava.stages.judge import judge
from stllava.stages.pair import pair
from stllava.stages.results import AskResult, JudgeResult
from stllava.stages.sft import sft
from stllava.store import MANIFEST, read_manifest
from stllava.text import counted

logger = logging.getLogger(__name__)


@dataclass
class Rounds:
    """What the rounds of one run have in common, and what has come of them so far."""

    options: RunOptions
    folder: RunDir
    data: DataSet
    sentences: list[str]
    """What the run tells its reader; rounds add to it."""
    notes: list[str]
    """What the report notes; rounds add to it."""
    measures: dict[str, float]
    """Figures of the run; rounds add to them."""
    pairing: PairOptions = field(init=False)
    """How pairs are made: as the options say, or with the expert's errors as an audit found them."""
    learning: DpoOptions = field(init=False)
    """How they are learned: as the options say, or with the label smoothing that an audit found."""
    pairs: list[Path] = field(default_factory=list)
    """Folders of the pairs of all rounds."""
    judged: list[tuple[Path, Path]] = field(default_factory=list)
    """Folders of answers and of the expert's judgments of them."""
    judged_at_no_cost: list[tuple[Path, Path]] = field(default_factory=list)
    """Those judged by what was made of its verdicts."""
    votes: list[Mapping[str, float]] = field(default_factory=list)
    """What was counted of the policy's own votes in each round, where they judge."""
    budget: RoundBudget = field(init=False)
    """What the rounds may ask the expert, and what they have asked."""

    def __post_init__(self) -> None:
        """Begin with the options as they are."""
        self.budget = RoundBudget(self.options, self.folder)
        self.pairing, self.learning = self.options.pair, self.options.dpo

    def learn(self, number: int, policy: Path) -> None:
        """Make the policy of a round from `policy`."""
        name = round_name(number)
        options, root = self.options, self.data.image_root
        seed = self.seed_of(name)
        answers, judgments, pairs = (self.folder.stage(name, stage) for stage in ("answer", "judge", "pair"))
        if number == 1 and options.judge.audit:
            self.audit_expert(policy, seed)
        judging = self.judging(number, policy)
        described = self.describe(name, policy, seed, judging=judging) if options.ask.num_descriptions > 1 else None
        asked = self.ask(name, policy, seed)
        questions, truth = self.folder.stage(name, "ask"), self.data.truth
        answer(
            options.answer,
            policy=policy,
            questions=questions,
            root=root,
            to=answers,
            expert=judging.rule,
            truth=truth,
            seed=seed,
        )
        judged = self.judge(name, policy, seed, judging=judging)
        gains = self.measure_gains(options.image_gain, name, policy) if options.image_gain is not None else None
        try:
            paired = pair(
                self.pairing,
                answers=answers,
                judgments=judgments,
                to=pairs,
                gains=gains if self.pairing.gain_weight else None,
                questions=questions if self.pairing.question_pairs else None,
            )
        except NothingLeftError as error:
            if not judging.is_limited:
                raise
            raise NothingLeftError(
                f"no pair came from the {judged.asked} verdicts that {name} bought",
                expected="verdicts enough to learn from",
                remedy="Raise judge.budget or budget_cost and give the same command again, which pays for none twice; or: "
                + str(error),
            ) from error
        before = self.pairs if options.keep_pairs else []
        earlier = [*before, described] if described else before
        self.pairs += [described, pairs] if described else [pairs]
        subjects = judged.judged if judging.is_limited else asked.distinct
        valid = judged.verdicts / subjects if subjects else 0.0
        self.measures[f"{name}/valid_share"] = valid
        share = f"of {judged.judged}, {judged.asked} of them asked about" if judging.is_limited else "of all but repeats"
        self.sentences.append(
            f"{name} asked {counted(asked.asked, 'question')} and kept {asked.questions}; {judged.verdicts} got a "
            f"verdict ({valid:.1%} {share}); they made {counted(paired.pairs, 'pair')}."
        )
        # Own votes of one round must not stand against verdicts of another that made no pair.
        believed = self.judged if options.judge.consensus and options.judge.is_limited else []
        launched(
            options.training.launch,
            dpo,
            self.learning,
            policy=policy,
            preferences=pairs,
            earlier=earlier,
            answers=[folder for folder, _ in believed],
            judgments=[folder for _, folder in believed],
            images=root,
            conversations=self.data.conversations,
            to=self.folder.policy(name),
            seed=seed,
        )

    def seed_of(self, name: str) -> int:
        """The seed of all that a policy of this name is made by."""
        return int(content_id(self.options.seed, name)[:8], 16)

    def ask(self, name: str, policy: Path, seed: int) -> AskResult:
        """The questions of a round, about the descriptions that the expert chose where there are several."""
        chooses = self.options.ask.num_descriptions > 1
        return ask(
            self.options.ask,
            policy=policy,
            images=self.data.images,
            root=self.data.image_root,
            to=self.folder.stage(name, "ask"),
            described=self.folder.description_stage(name, "answer") if chooses else None,
            verdicts=self.folder.description_stage(name, "judge") if chooses else None,
            conversations=self.data.conversations,
            fingerprints=self.data.fingerprints,
            seed=seed,
        )

    def judge(self, name: str, policy: Path, seed: int, *, judging: JudgeOptions) -> JudgeResult:
        """The verdicts of a round."""
        answers, judgments = self.folder.stage(name, "answer"), self.folder.stage(name, "judge")
        labelled = None
        if judging.votes and judging.itself.labels:
            to = partial(self.folder.calibration_stage, name)
            labelled = self.answer_labelled(policy, number=judging.itself.labels, to=to, seed=seed)
        judged = judge(
            judging,
            answers=answers,
            truth=self.data.truth,
            root=self.data.image_root,
            to=judgments,
            labels=self.data.validation if labelled else None,
            labelled_answers=labelled,
            earlier=self.judged if judging.is_limited or judging.is_paid else (),
            seed=seed,
            # With a larger share than it had; what was paid for is kept.
            existing="replace" if (judgments / MANIFEST).is_file() and has_less(judgments, judging) else "resume",
        )
        self.budget.spend(judged.manifest.measures.get("asked", 0.0), judged.manifest.measures.get("cost", 0.0))
        self.notes += [note for note in judged.notes if note not in self.notes]
        if judging.votes:
            self.tell_votes(name, judged.manifest.measures)
        described = self.folder.description_stage(name, "answer"), self.folder.description_stage(name, "judge")
        judged_so = self.judged if judging.expert == self.options.judge.expert else self.judged_at_no_cost
        judged_so += [described, (answers, judgments)] if self.options.ask.num_descriptions > 1 else [(answers, judgments)]
        return judged

    def judging(self, number: int, policy: Path) -> JudgeOptions:
        """How a round's answers are judged: by the expert within its budget, later by a judge made of its verdicts."""
        options = self.options
        if not options.distill_after or number <= options.distill_after:
            return self.budget.share(number)
        to = self.folder.own_judge
        if not self.judged_at_no_cost:
            made = distill(
                options.distill,
                policy=policy,
                answers=[answers for answers, _ in self.judged],
                judgments=[judgments for _, judgments in self.judged],
                images=self.data.image_root,
                to=to,
                truth=self.data.truth,
                seed=options.seed,
            )
            kappa = made.check.agreement
            if options.min_judge_kappa and (kappa is None or kappa.value < options.min_judge_kappa):
                raise NothingLeftError(
                    f"a judge made of the expert's verdicts is too weak to go on with. {made.check.sentence.rstrip('.')}",
                    expected=f"a kappa of at least {options.min_judge_kappa:g} (min_judge_kappa)",
                    remedy="Let the expert judge more (distill_after, judge.budget), train the judge longer (distill.epochs), "
                    "or lower min_judge_kappa.",
                )
            self.sentences.append(
                f"From {round_name(number)} on a judge made of the expert's verdicts judges. {made.check.sentence}"
            )
        own = options.judge.distilled.model_copy(update={"model": str(to)})
        return options.judge.model_copy(update={"expert": "distilled", "distilled": own, "budget": 0, "budget_cost": 0.0})

    def answer_labelled(self, policy: Path, *, number: int, to: Callable[[RoundStage], Path], seed: int) -> Path:
        """The folder of the policy's answers to so many labelled questions; `to` says where these stages lie."""
        questions, answers = to("ask"), to("answer")
        # Of the validation split: what the policy has learned it knows better than what it will ask about.
        judging = self.options.judge
        if (questions / MANIFEST).is_file():
            judging = JudgeOptions.model_validate(read_manifest(questions).config)  # Who judges them shapes no question.
        ask_labelled(judging, samples=self.data.validation, to=questions, number=number)
        answer(self.options.answer, policy=policy, questions=questions, root=self.data.image_root, to=answers, seed=seed)
        return answers

    def audit_expert(self, policy: Path, seed: int) -> None:
        """Estimate the expert's errors from labelled questions, and learn from its verdicts accordingly."""
        options, labels, root = self.options, self.data.validation, self.data.image_root
        to = self.folder.audit_stage
        answers = self.answer_labelled(policy, number=options.judge.audit, to=to, seed=seed)
        judgments = to("judge")
        everything = options.judge.model_copy(update={"budget": 0, "consensus": False})
        if options.judge.budget_cost:
            # Chosen by chance: of the questions on which answers split most an expert gets more wrong than of all.
            everything = everything.model_copy(update={"budget_cost": options.judge.budget_cost / 2, "selection": "random"})
        if (judgments / MANIFEST).is_file():
            everything = with_share_of(everything, judgments)
        # A rule knows the labels here as it knows its references there.
        judged = judge(everything, answers=answers, truth=labels, root=root, to=judgments, seed=seed, may_abstain=True)
        self.budget.spend(judged.asked, judged.manifest.measures.get("cost", 0.0))
        found = audit_expert(options.pair, answers=answers, judgments=judgments, labels=labels, to=self.folder.expert_audit)
        asked = judged.manifest.counts_in
        if asked < options.judge.audit:
            self.sentences.append(
                f"The audit is of {asked} questions, not {options.judge.audit}: validation has no more that fit."
            )
        warnings = audit_warnings(found, options=options.pair, smooth_labels=options.judge.smooth_labels)
        self.sentences += [*found.sentences, *warnings]
        for warning in warnings:
            logger.warning("%s", warning)
        self.pairing = with_errors(options.pair, found)
        if found.wrong_pairs is not None and options.judge.smooth_labels:
            smoothing = error_of(found.wrong_pairs)
            self.learning = options.dpo.model_copy(update={"label_smoothing": smoothing})
            self.sentences.append(f"Pairs are learned with a label smoothing of {smoothing:.3f}.")

    def tell_votes(self, name: str, measures: Mapping[str, float]) -> None:
        """Say how far the votes of a policy that judges itself were right, and whether one answer takes over."""
        if "true_error" in measures:
            low, high = measures["true_error_low"], measures["true_error_high"]
            self.sentences.append(
                f"{name}: of {measures['true_error_n']:.0f} verdicts whose answer is known, {measures['true_error']:.1%} "
                f"[{low:.1%}, {high:.1%}] call a wrong answer right."
            )
        self.votes.append(measures)
        first = {key: value for earlier in reversed(self.votes) for key, value in earlier.items()}
        sentence = takeover(first, measures)
        if sentence is not None:
            self.sentences.append(f"{name}: {sentence}")

    def measure_gains(self, options: ImageGainOptions, name: str, policy: Path) -> Path:
        """How much likelier a round's judged answers are with their image; says how many of them read it."""
        gains = image_gain(
            options,
            policy=policy,
            answers=self.folder.stage(name, "answer"),
            judgments=self.folder.stage(name, "judge"),
            root=self.data.image_root,
            to=self.folder.image_gain(name),
        )
        self.sentences.append(
            f"{name}: {gains.reading('right'):.0%} of the right answers and {gains.reading('wrong'):.0%} of the wrong ones "
            f"read the image: with it they are at least {options.min_ratio:g} times as likely as with a black one."
        )
        return gains.folder

    def describe(self, name: str, policy: Path, seed: int, *, judging: JudgeOptions) -> Path | None:
        """Descriptions of every image, judged, for ask to go on from; returns the folder of the pairs they make, if any."""
        options, root = self.options, self.data.image_root
        several = options.answer.model_copy(
            update={"num_answers": options.ask.num_descriptions, "sampling": options.ask.description_sampling}
        )
        stages: tuple[RoundStage, ...] = ("ask", "answer", "judge", "pair")
        requests, answers, judgments, pairs = (self.folder.description_stage(name, stage) for stage in stages)
        request_descriptions(options.ask, policy=policy, images=self.data.images, root=root, to=requests, seed=seed)
        answer(several, policy=policy, questions=requests, root=root, to=answers, seed=seed)
        judged = judge(judging, answers=answers, truth=self.data.truth, root=root, to=judgments, seed=seed, may_abstain=True)
        if not judged.verdicts:
            self.notes.append(
                f"{name}: the expert abstained on all {judged.judged} requests for a description; questions follow from "
                "the first description of each image."
            )
        try:
            pair(self.pairing.model_copy(update={"question_pairs": 0}), answers=answers, judgments=judgments, to=pairs)
        except NothingLeftError:
            return None  # The best description is asked about all the same.
        return pairs

    def learn_what_was_right(self, training: SftOptions, policy: Path) -> None:
        """Gather what the expert found right and train `policy` on it."""
        to, root = self.folder.policy(FINAL), self.data.image_root
        seed = self.seed_of(FINAL)
        rounds = [*self.judged_at_no_cost, *self.judged]  # Of the same question the expert's own verdict counts.
        votes = voted_folders(self.folder.review(answers.parent.name) for answers, _ in rounds)
        right = final_data(
            self.pairing, conversations=self.data.conversations, rounds=rounds, to=self.folder.final_data, votes=votes
        )
        if votes:
            self.notes.append(
                f"Of the {right.right} right answers that the last training learned beside the labels, readers decided about "
                f"{right.voted}; votes took out {right.refused_by_readers}."
            )
        launched(
            self.options.training.launch,
            sft,
            training,
            model=str(policy),
            conversations=right.conversations,
            images=root,
            to=to,
            seed=seed,
        )
