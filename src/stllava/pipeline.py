"""The whole loop: sft, then rounds of ask, answer, judge, pair, dpo, each evaluated; keep the best, stop when it is over.

Writes one folder a stage under the run directory, then `outcome.json`, `summary.json` and `report.html`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stllava.config import DpoOptions, ImageGainOptions, JudgeOptions, PairOptions, SftOptions
from stllava.data.overlap import find_overlap, read_fingerprints, read_training_items
from stllava.data.prepare import DataSet, prepare
from stllava.errors import CollapseError, ConflictError, NothingLeftError, StllavaError
from stllava.experts.build import require_expert
from stllava.experts.vote_monitor import takeover
from stllava.metrics.score import compare
from stllava.recipe import RunOptions
from stllava.records import Difference, Outcome, Overlap, Prediction, Sample, Score, content_id
from stllava.report.page import write_report
from stllava.rundir import BLIND, FINAL, SFT, RoundStage, RunDir, round_name
from stllava.stages.answer import answer
from stllava.stages.ask import ask, request_descriptions
from stllava.stages.calibrate import ask_labelled, audit_expert, error_of, with_errors
from stllava.stages.distill import distill
from stllava.stages.dpo import dpo
from stllava.stages.evaluate import evaluate, guess, majority
from stllava.stages.final_data import final_data
from stllava.stages.image_gain import image_gain
from stllava.stages.judge import judge
from stllava.stages.pair import pair
from stllava.stages.results import EvaluateResult
from stllava.stages.sft import sft
from stllava.store import (
    MANIFEST,
    Existing,
    Stage,
    locked,
    read_formatted,
    read_jsonl,
    read_records,
    remove_folder,
    warn_of_losses,
    write_whole,
)

MAY_CHANGE = frozenset(
    {"name", "model", "rounds", "patience", "keep_pairs", "final_sft", "baselines", "allow_overlap", "max_bad"}
)
"""Options with which a finished run is given again: it goes on from there, and stages that they do change refuse."""
CHOOSING = ("closed_accuracy", "open_recall", "open_exact_match")
"""The metrics whose mean on the validation split chooses the best policy."""


def run(options: RunOptions, *, to: Path, existing: Existing = "resume") -> Outcome:
    """Run the loop in the folder `to`; a finished run is read back, a stopped one goes on, and so does one of more rounds.

    Args:
        options: What the recipe says.
        to: The run directory.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where a stage cannot go on; the same call goes on where it stopped once that is put right.
    """
    folder = RunDir(to)
    with locked(to):
        stage = Stage("run", to, options, inputs={}, existing=existing, may_change=MAY_CHANGE)
        if stage.manifest is not None:
            warn_of_losses(to)
            return read_formatted(folder.outcome, Outcome)
        loop = Loop(options, folder)
        outcome = loop.turn()
        stage.write_plan()
        write_whole(folder.outcome, outcome.model_dump_json(indent=1) + "\n")
        write_report(to)
        files = [folder.outcome, folder.summary, folder.page]
        stage.finish(counts_in=options.rounds, counts_out=loop.finished, measures=loop.measures, files=files)
        return outcome


@dataclass
class Loop:
    """One run on its way: where things lie and what has been decided so far."""

    options: RunOptions
    folder: RunDir
    pairing: PairOptions = field(init=False)
    """How pairs are made: as the options say, or with the expert's errors as an audit found them."""
    learning: DpoOptions = field(init=False)
    """How they are learned: as the options say, or with the label smoothing that an audit found."""
    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    policies: list[str] = field(default_factory=list)
    pairs: list[Path] = field(default_factory=list)
    judged: list[tuple[Path, Path]] = field(default_factory=list)
    """Folders of answers and of the expert's judgments of them."""
    judged_at_no_cost: list[tuple[Path, Path]] = field(default_factory=list)
    """Those judged by what was made of its verdicts."""
    votes: list[Mapping[str, float]] = field(default_factory=list)
    """What was counted of the policy's own votes in each round, where they judge."""
    spent: list[tuple[float, float]] = field(default_factory=list)
    finished: int = 0

    def __post_init__(self) -> None:
        """Begin with the options as they are."""
        self.pairing, self.learning = self.options.pair, self.options.dpo

    def turn(self) -> Outcome:
        """All stages in order; returns what came of them."""
        options = self.options
        if options.rounds and options.judge.rule in ("oracle", "simulated") and not options.data.synthetic:
            raise StllavaError(
                f"judge.expert is {options.judge.expert!r}, which knows synthetic phantoms alone, and data.kind is "
                f"{options.data.kind!r}",
                expected="an expert that can judge answers about these images",
                remedy="Set judge.expert to reference (with data.references), chat or local: docs/expert.md; of a "
                "simulated one, set simulated.of to reference.",
            )
        data = prepare(
            options.data, seed=options.seed, to=self.folder.data, allow_overlap=options.allow_overlap, max_bad=options.max_bad
        )
        self.notes += data.notes
        self.policies.append(SFT)
        if options.rounds and not (self.folder.policy(SFT) / MANIFEST).is_file():
            # Stage 1 can take days: what would stop the first round's judge is said before it.
            require_expert(options.judge, root=data.image_root, truth=data.truth)
        sft(
            options.sft,
            model=self.start(data),
            conversations=data.conversations,
            images=data.image_root,
            to=self.folder.policy(SFT),
            seed=options.seed,
        )
        best, values = SFT, {SFT: self.value(SFT, data)}
        fruitless = 0
        for number in range(1, options.rounds + 1):
            name = round_name(number)
            if not self.round(number, self.folder.policy(best), data):
                break
            self.finished, values[name] = number, self.value(name, data)
            gain = values[name] - values[best]
            change = f"changed validation from {values[best]:.3f} ({best}) to {values[name]:.3f}"
            self.sentences.append(f"{name} {change}; it {'is kept as the best so far' if gain > 0 else 'did not help'}.")
            if options.baselines:
                self.tell_blind_gain(name, best, data, gain=gain)
            best, fruitless = (name, 0) if gain > 0 else (best, fruitless + 1)
            if fruitless >= options.patience:
                self.sentences.append(f"Stopped after {name}: {fruitless} round(s) in a row did not beat {best} on validation.")
                break
        else:
            self.sentences.append(f"Stopped after {options.rounds} rounds, the most that were allowed.")
        if options.final_sft is not None and self.judged:
            self.learn_right(options.final_sft, self.folder.policy(best), data)
            values[FINAL] = self.value(FINAL, data)
            change = f"changed validation from {values[best]:.3f} ({best}) to {values[FINAL]:.3f}"
            best = FINAL if values[FINAL] > values[best] else best
            self.sentences.append(f"Learning all that was found right {change}.")
        self.sentences.append(f"{best} is the best policy: its validation score of {values[best]:.3f} is the highest.")
        return self.measure(best, data)

    def start(self, data: DataSet) -> str:
        """The model that stage 1 starts from: as the options name it, or aligned with the data's captions."""
        options = self.options
        model = starting_model(options, data, self.folder.model)
        if options.align is None:
            return model
        if data.captions is None:
            raise StllavaError(
                "align without captions", expected="data with captions", remedy="Set data.captions, or no align."
            )
        to, root = self.folder.align, data.image_root
        sft(options.align, model=model, conversations=data.captions, images=root, to=to, seed=options.seed)
        return str(to)

    def round(self, number: int, policy: Path, data: DataSet) -> bool:
        """One round of self-training from `policy`; False, with a sentence, when it made no policy.

        Where not even the first round makes one, the run has learned nothing: that is an error, and once its cause is
        put right the same command goes on.
        """
        try:
            self.learn(number, policy, data)
        except (CollapseError, NothingLeftError) as error:
            if not self.finished:
                raise
            self.sentences.append(f"Stopped in {round_name(number)}: {error}")
            return False
        return True

    def within_budget(self, number: int) -> JudgeOptions:
        """How a round's answers are judged: what is left of the run's budget is shared evenly by the rounds still to come."""
        options = self.options.judge
        asked, cost = (sum(values) for values in zip((0.0, 0.0), *self.spent, strict=True))
        left = min(self.options.rounds, self.options.distill_after or self.options.rounds) - number + 1
        shares: dict[str, float] = {}
        # A share of nothing would mean no limit.
        for name, total, spent in (("budget", options.budget, asked), ("budget_cost", options.budget_cost, cost)):
            if total and spent >= total:
                raise NothingLeftError(
                    f"judge.{name} of {total:g} is spent",
                    expected="a verdict to pay for",
                    remedy="Raise it, or run fewer rounds.",
                )
        if options.budget:
            shares["budget"] = math.ceil((options.budget - asked) / left)
        if options.budget_cost:
            shares["budget_cost"] = (options.budget_cost - cost) / left
        return options.model_copy(update=shares)

    def judging(self, number: int, policy: Path, data: DataSet) -> JudgeOptions:
        """How a round's answers are judged: by the expert within its budget, later by a judge made of its verdicts."""
        options = self.options
        if not options.distill_after or number <= options.distill_after:
            return self.within_budget(number)
        to = self.folder.own_judge
        if not self.judged_at_no_cost:
            made = distill(
                options.distill,
                policy=policy,
                answers=[answers for answers, _ in self.judged],
                judgments=[judgments for _, judgments in self.judged],
                images=data.image_root,
                to=to,
                truth=data.truth,
                truth_expert="oracle" if options.data.synthetic else "reference",
                seed=options.seed,
            )
            self.sentences.append(
                f"From {round_name(number)} on a judge made of the expert's verdicts judges. {made.check.sentence}"
            )
        own = options.judge.distilled.model_copy(update={"model": str(to)})
        return options.judge.model_copy(update={"expert": "distilled", "distilled": own, "budget": 0, "budget_cost": 0.0})

    def learn(self, number: int, policy: Path, data: DataSet) -> None:
        """Make the policy of a round from `policy`."""
        name = round_name(number)
        options, chooses = self.options, self.options.ask.num_descriptions > 1
        seed = int(content_id(options.seed, name)[:8], 16)
        questions, answers = self.folder.stage(name, "ask"), self.folder.stage(name, "answer")
        judgments, pairs = self.folder.stage(name, "judge"), self.folder.stage(name, "pair")
        descriptions = self.folder.description_stage(name, "answer"), self.folder.description_stage(name, "judge")
        if number == 1 and options.judge.audit:
            self.audit_expert(policy, data, seed)
        judging = self.judging(number, policy, data)
        described = self.describe(name, policy, data, seed, judging=judging) if chooses else None
        asked = ask(
            options.ask,
            policy=policy,
            images=data.images,
            root=data.image_root,
            to=questions,
            described=descriptions[0] if chooses else None,
            verdicts=descriptions[1] if chooses else None,
            conversations=data.conversations,
            seed=seed,
        )
        answer(
            options.answer,
            policy=policy,
            questions=questions,
            root=data.image_root,
            to=answers,
            expert=judging.rule,
            truth=data.truth,
            seed=seed,
        )
        labelled = None
        if judging.votes and judging.itself.labels:
            to = partial(self.folder.calibration_stage, name)
            labelled = self.answer_labelled(policy, data, number=judging.itself.labels, to=to, seed=seed)
        judged = judge(
            judging,
            answers=answers,
            truth=data.truth,
            root=data.image_root,
            to=judgments,
            labels=data.validation if labelled else None,
            labelled_answers=labelled,
            earlier=self.judged if judging.is_limited or judging.is_paid else (),
            seed=seed,
        )
        self.spent.append((judged.manifest.measures.get("asked", 0.0), judged.manifest.measures.get("cost", 0.0)))
        subjects = judged.judged if judging.is_limited else asked.distinct
        valid = judged.verdicts / subjects if subjects else 0.0
        self.measures[f"{name}/valid_share"] = valid
        self.notes += [note for note in judged.notes if note not in self.notes]
        if judging.votes:
            self.tell_votes(name, judged.manifest.measures)
        judged_so = self.judged if judging.expert == options.judge.expert else self.judged_at_no_cost
        judged_so += [descriptions, (answers, judgments)] if chooses else [(answers, judgments)]
        gains = self.measure_gains(name, policy, data) if options.image_gain is not None else None
        paired = pair(self.pairing, answers=answers, judgments=judgments, to=pairs, gains=gains)
        before = self.pairs if options.keep_pairs else []
        earlier = [*before, described] if described else before
        self.pairs += [described, pairs] if described else [pairs]
        share = f"of the {judged.judged} chosen" if judging.is_limited else "of all but repeats"
        self.sentences.append(
            f"{name} asked {asked.asked} questions and kept {asked.questions}; {judged.verdicts} got a "
            f"verdict ({valid:.1%} {share}); they made {paired.pairs} pairs."
        )
        dpo(
            self.learning,
            policy=policy,
            preferences=pairs,
            earlier=earlier,
            images=data.image_root,
            conversations=data.conversations,
            to=self.folder.policy(name),
            seed=seed,
        )
        self.policies.append(name)

    def answer_labelled(self, policy: Path, data: DataSet, *, number: int, to: Callable[[RoundStage], Path], seed: int) -> Path:
        """The folder of the policy's answers to so many labelled questions; `to` says where these stages lie."""
        questions, answers = to("ask"), to("answer")
        # Of the validation split: what the policy has learned it knows better than what it will ask about.
        ask_labelled(self.options.judge, samples=data.validation, to=questions, number=number)
        answer(self.options.answer, policy=policy, questions=questions, root=data.image_root, to=answers, seed=seed)
        return answers

    def audit_expert(self, policy: Path, data: DataSet, seed: int) -> None:
        """Estimate the expert's errors from labelled questions, and learn from its verdicts accordingly."""
        options, labels, root = self.options, data.validation, data.image_root
        to = self.folder.audit_stage
        answers = self.answer_labelled(policy, data, number=options.judge.audit, to=to, seed=seed)
        judgments = to("judge")
        everything = options.judge.model_copy(update={"budget": 0, "budget_cost": 0.0, "consensus": False})
        # A rule knows the labels here as it knows its references there.
        judged = judge(everything, answers=answers, truth=labels, root=root, to=judgments, seed=seed, may_abstain=True)
        self.spent.append((float(judged.judged), judged.manifest.measures.get("cost", 0.0)))
        found = audit_expert(options.pair, answers=answers, judgments=judgments, labels=labels, to=self.folder.expert_audit)
        self.sentences += found.sentences
        self.pairing = with_errors(options.pair, found.wrong, found.kinds)
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
        sentence = takeover(self.votes[0], measures)
        if sentence is not None:
            self.sentences.append(f"{name}: {sentence}")

    def measure_gains(self, name: str, policy: Path, data: DataSet) -> Path:
        """How much likelier a round's judged answers are with their image; says how many of them read it."""
        options = self.options.image_gain or ImageGainOptions()
        gains = image_gain(
            options,
            policy=policy,
            answers=self.folder.stage(name, "answer"),
            judgments=self.folder.stage(name, "judge"),
            root=data.image_root,
            to=self.folder.image_gain(name),
        )
        self.sentences.append(
            f"{name}: {gains.reading('right'):.0%} of the right answers and {gains.reading('wrong'):.0%} of the wrong ones "
            f"read the image: with it they are at least {options.min_ratio:g} times as likely as with a black one."
        )
        return gains.folder

    def tell_blind_gain(self, name: str, before: str, data: DataSet, *, gain: float) -> None:
        """Warn where a policy that is shown black images gained as much on validation as one that sees."""
        blind = [self.value(policy, data, blank=True) for policy in (before, name)]
        if gain > 0 and blind[1] - blind[0] >= gain:
            self.sentences.append(
                f"{name} gained no more by looking: shown black images it went from {blind[0]:.3f} to {blind[1]:.3f} on "
                "validation. What it learned is in the questions, not in the images."
            )

    def describe(self, name: str, policy: Path, data: DataSet, seed: int, *, judging: JudgeOptions) -> Path | None:
        """Descriptions of every image, judged, for ask to go on from; returns the folder of the pairs they make, if any."""
        options, root = self.options, data.image_root
        several = options.answer.model_copy(
            update={"num_answers": options.ask.num_descriptions, "sampling": options.ask.description_sampling}
        )
        stages: tuple[RoundStage, ...] = ("ask", "answer", "judge", "pair")
        requests, answers, judgments, pairs = (self.folder.description_stage(name, stage) for stage in stages)
        request_descriptions(options.ask, policy=policy, images=data.images, root=root, to=requests, seed=seed)
        answer(several, policy=policy, questions=requests, root=root, to=answers, seed=seed)
        judged = judge(judging, answers=answers, truth=data.truth, root=root, to=judgments, seed=seed, may_abstain=True)
        if not judged.verdicts:
            self.notes.append(
                f"{name}: the expert abstained on all {judged.judged} requests for a description; questions follow from "
                "the first description of each image."
            )
        try:
            pair(self.pairing, answers=answers, judgments=judgments, to=pairs)
        except NothingLeftError:
            return None  # The best description is asked about all the same.
        return pairs

    def learn_right(self, training: SftOptions, policy: Path, data: DataSet) -> None:
        """Train `policy` once more on the labels and on all that the expert found right in the rounds."""
        self.policies.append(FINAL)
        try:
            self.learn_from_final_data(training, policy, data)
        except ConflictError:
            # Of fewer rounds than there are now, or with other options: the last step of a run is no loss.
            for folder in (self.folder.final, self.folder.evaluations(FINAL), self.folder.evaluations(BLIND + FINAL)):
                remove_folder(folder)
            self.learn_from_final_data(training, policy, data)

    def learn_from_final_data(self, training: SftOptions, policy: Path, data: DataSet) -> None:
        """Gather what the expert found right and train `policy` on it."""
        to, root = self.folder.policy(FINAL), data.image_root
        seed = int(content_id(self.options.seed, FINAL)[:8], 16)
        rounds = [*self.judged_at_no_cost, *self.judged]  # Of the same question the expert's own verdict counts.
        right = final_data(
            self.pairing, conversations=data.conversations, rounds=rounds, to=self.folder.final_data
        ).conversations
        sft(training, model=str(policy), conversations=right, images=root, to=to, seed=seed)

    def value(self, name: str, data: DataSet, *, blank: bool = False) -> float:
        """The mean of the policy's validation metrics: what rounds are compared by; with `blank`, shown black images."""
        scores = [score.value for score in self.evaluate(name, data.validation, data, blank=blank) if score.metric in CHOOSING]
        return sum(scores) / len(scores)

    def evaluate(self, name: str, samples: Path, data: DataSet, *, blank: bool = False) -> list[Score]:
        """A policy's scores on a benchmark; with `blank`, those of the same policy that is shown black images."""
        shown = BLIND + name if blank else name
        return evaluate(
            self.options.evaluate,
            policy=self.folder.policy(name),
            samples=samples,
            root=data.image_root,
            to=self.folder.evaluation(shown, samples.stem),
            name=shown,
            blank=blank,
            candidates=data.candidates.get(samples.stem),
        ).scores

    def baseline(self, rule: Callable[..., EvaluateResult], name: str, samples: Path, data: DataSet) -> list[Score]:
        """The scores of a baseline that knows only the answers of the validation split."""
        to = self.folder.evaluation(name, samples.stem)
        return rule(self.options.evaluate, known=data.validation, samples=samples, to=to).scores

    def measure(self, best: str, data: DataSet) -> Outcome:
        """Every policy and baseline on every benchmark, and the gains over sft."""
        scores: list[Score] = []
        differences: list[Difference] = []
        blind = tuple(BLIND + name for name in self.policies)
        baselines = ("majority", "random", *blind) if self.options.baselines else ()
        for samples in (*data.benchmarks.values(), data.validation):
            for name in self.policies:
                scores += self.evaluate(name, samples, data)
                if name != SFT:
                    mine, sfts = (
                        read_records(self.folder.evaluation(policy, samples.stem), "predictions", Prediction)
                        for policy in (name, SFT)
                    )
                    differences += compare(mine, sfts, policy=name, against=SFT, benchmark=samples.stem)
            if baselines:
                scores += self.baseline(majority, "majority", samples, data)
                scores += self.baseline(guess, "random", samples, data)
            if baselines and samples != data.validation:
                for name in self.policies:
                    scores += self.evaluate(name, samples, data, blank=True)
        return Outcome(
            overlaps=tuple(self.overlaps(data)),
            name=self.options.name,
            policies=tuple(self.policies),
            baselines=baselines,
            best=best,
            sentences=tuple(self.sentences),
            notes=tuple(self.notes),
            scores=tuple(scores),
            differences=tuple(differences),
        )

    def overlaps(self, data: DataSet) -> list[Overlap]:
        """What all that was learned, self-made questions and pairs included, has of validation and each benchmark."""
        fingerprints = read_fingerprints(data.fingerprints)
        learned = {"labelled conversations": read_training_items(data.conversations)}
        if data.images.stat().st_size:  # None is left to ask about where all are labelled.
            learned["images to ask about"] = read_training_items(data.images)
        for number in range(1, self.options.rounds + 1):
            name = round_name(number)
            for what, folder in (("questions", self.folder.stage(name, "ask")), ("pairs", self.folder.stage(name, "pair"))):
                if (folder / MANIFEST).is_file():
                    learned[f"{what} of round {number}"] = read_training_items(folder)
        return [
            find_overlap(
                name, read_jsonl(path, Sample), fingerprints=fingerprints, learned=learned, learned_fingerprints=fingerprints
            )
            for name, path in {"validation": data.validation, **data.benchmarks}.items()
        ]


def starting_model(options: RunOptions, data: DataSet, to: Path) -> str:
    """The model that sft starts from: composed or the small one, built here, or the one the options name."""
    if options.compose is not None:
        from stllava.model.compose import compose

        compose(options.compose, to=to, seed=options.seed)
        return str(to)
    if options.model != "small":
        return options.model
    from stllava.model.small import build_small

    build_small(options.small, conversations=data.conversations, to=to, seed=options.seed)
    return str(to)
