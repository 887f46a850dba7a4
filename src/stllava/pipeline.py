"""The whole loop: sft, then rounds of ask, answer, judge, pair, dpo, each evaluated; keep the best, stop when it is over.

Writes one folder a stage under the run directory, then `outcome.json`, `summary.json` and `report.html`.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stllava.config import SftOptions
from stllava.data.overlap import find_overlap, read_fingerprints, read_training_items
from stllava.data.prepare import DataSet, prepare
from stllava.errors import CollapseError, ConflictError, NothingLeftError, StllavaError
from stllava.execution import working
from stllava.experts.build import require_expert
from stllava.launch import launched
from stllava.metrics.looking import Gained, gain_by_looking
from stllava.metrics.score import compare
from stllava.recipe import RunOptions
from stllava.records import Difference, Outcome, Overlap, Prediction, Sample, Score
from stllava.report.page import write_report
from stllava.review.voted_answers import voted_folders
from stllava.rounds import Rounds
from stllava.rundir import BLIND, FINAL, SFT, RunDir, round_name
from stllava.stages.baselines import guess, majority
from stllava.stages.evaluate import evaluate
from stllava.stages.final_data import has_seen
from stllava.stages.results import EvaluateResult
from stllava.stages.sft import sft
from stllava.store import (
    MANIFEST,
    Existing,
    Stage,
    locked,
    read_formatted,
    read_jsonl,
    remove_folder,
    stream_records,
    warn_of_losses,
    write_whole,
)
from stllava.text import counted
from stllava.tracking import TrackerError, Tracking, numbers_of, require_tracker, track_run

logger = logging.getLogger(__name__)

MAY_CHANGE = frozenset(
    {"name", "model", "rounds", "patience", "keep_pairs", "final_sft", "baselines", "allow_overlap", "max_bad", "training"}
    | {
        "track",
        "track_to",
        "track_project",
        "track_samples",
        "track_send_images",
        "judge.budget",
        "judge.budget_cost",
        "min_judge_kappa",
    }
)
"""Options with which a finished run is given again: it goes on from there, and stages that they do change refuse."""
CHOOSING = ("closed_accuracy", "open_recall", "open_exact_match")
"""The metrics whose mean on the validation split chooses the best policy."""


def run(options: RunOptions, *, to: Path, existing: Existing = "resume") -> Outcome:
    """Run the loop in the folder `to`; a finished run is read back, a stopped one goes on, and so does one of more rounds.

    A finished run whose rounds people have voted on since learns its last training again, which follows their votes.

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
        if stage.manifest is not None and not _has_new_votes(options, folder):
            warn_of_losses(to)
            return read_formatted(folder.outcome, Outcome)
        loop = Loop(options, folder)
        with working(options.execution):
            outcome = loop.turn()
        stage.write_plan()
        write_whole(folder.outcome, outcome.model_dump_json(indent=1) + "\n")
        loop.track()
        write_report(to)
        files = [folder.outcome, folder.summary, folder.page]
        stage.finish(counts_in=options.rounds, counts_out=loop.finished, measures=loop.measures, files=files)
        return outcome


def _has_new_votes(options: RunOptions, folder: RunDir) -> bool:
    """Whether readers of a finished run's rounds have voted otherwise since its last training, which follows their votes."""
    if options.final_sft is None or not (folder.final_data / MANIFEST).is_file():
        return False
    reviews = [folder.review(round_name(number)) for number in range(1, options.rounds + 1)]
    return not has_seen(folder.final_data, voted_folders(reviews))


@dataclass
class Loop:
    """One run on its way: where things lie and what has been decided so far."""

    options: RunOptions
    folder: RunDir
    sentences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    policies: list[str] = field(default_factory=list)
    finished: int = 0

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
        if (tracking := self.tracking()) is not None:
            require_tracker(tracking)
        data = prepare(
            options.data, seed=options.seed, to=self.folder.data, allow_overlap=options.allow_overlap, max_bad=options.max_bad
        )
        self.notes += data.notes
        self.policies.append(SFT)
        if options.rounds and not (self.folder.policy(SFT) / MANIFEST).is_file():
            # Stage 1 can take days: what would stop the first round's judge is said before it.
            require_expert(options.judge, root=data.image_root, truth=data.truth)
        launched(
            options.training.launch,
            sft,
            options.sft,
            model=self.start(data),
            conversations=data.conversations,
            images=data.image_root,
            to=self.folder.policy(SFT),
            seed=options.seed,
        )
        self.track()
        rounds = Rounds(options, self.folder, data, self.sentences, self.notes, self.measures)
        best, values = SFT, {SFT: self.value(SFT, data)}
        fruitless = 0
        for number in range(1, options.rounds + 1):
            name = round_name(number)
            if not self.round(number, rounds, self.folder.policy(best)):
                break
            self.finished, values[name] = number, self.value(name, data)
            self.track()
            gain = values[name] - values[best]
            change = f"changed validation from {values[best]:.3f} ({best}) to {values[name]:.3f}"
            self.sentences.append(f"{name} {change}; it {'is kept as the best so far' if gain > 0 else 'did not help'}.")
            if options.baselines:
                self.tell_blind_gain(name, best, data, gain=gain)
            best, fruitless = (name, 0) if gain > 0 else (best, fruitless + 1)
            if fruitless >= options.patience:
                told = "it" if fruitless == 1 else f"{fruitless} rounds in a row"
                self.sentences.append(f"Stopped after {name}: {told} did not beat {best} on validation.")
                break
        else:
            self.sentences.append(f"Stopped after {counted(options.rounds, 'round')}, the most allowed.")
        if options.final_sft is not None and rounds.judged:
            self.learn_right(options.final_sft, rounds, self.folder.policy(best))
            values[FINAL] = self.value(FINAL, data)
            change = f"changed validation from {values[best]:.3f} ({best}) to {values[FINAL]:.3f}"
            best = FINAL if values[FINAL] > values[best] else best
            self.sentences.append(f"Learning all that was found right {change}.")
        self.sentences.append(f"{best} is the best policy: its validation score of {values[best]:.3f} is the highest.")
        return self.measure(best, data)

    def tracking(self) -> Tracking | None:
        """The tracker that the options name, and what may go there."""
        options = self.options
        if options.track == "none":
            return None
        return Tracking(
            options.track,
            to=options.track_to,
            project=options.track_project,
            samples=options.track_samples,
            send_images=options.track_send_images,
        )

    def track(self) -> None:
        """Tell the tracker what is new, where there is one; one that does not answer is told later, and stops nothing."""
        options = self.options
        if (tracking := self.tracking()) is not None:
            try:
                track_run(self.folder.path, tracking, name=f"{options.name}-{options.seed}", config=numbers_of(options))
            except TrackerError as error:
                logger.warning("%s", error)

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
        launched(
            options.training.launch,
            sft,
            options.align,
            model=model,
            conversations=data.captions,
            images=root,
            to=to,
            seed=options.seed,
        )
        return str(to)

    def round(self, number: int, rounds: Rounds, policy: Path) -> bool:
        """One round of self-training from `policy`; False, with a sentence, when it made no policy.

        Where not even the first round makes one, the run has learned nothing: that is an error, and once its cause is
        put right the same command goes on.
        """
        try:
            rounds.learn(number, policy)
        except (CollapseError, NothingLeftError) as error:
            if not self.finished:
                raise
            self.sentences.append(f"Stopped in {round_name(number)}: {error}")
            return False
        self.policies.append(round_name(number))
        return True

    def tell_blind_gain(self, name: str, before: str, data: DataSet, *, gain: float) -> None:
        """Warn where a gain on validation is not shown to be more than that of the same policy that is shown black images."""
        blind = [self.value(policy, data, blank=True) for policy in (before, name)]
        if gain <= 0:
            return
        seeing, unseeing = (
            Gained(*(list(self.predictions(prefix + policy, data.validation)) for policy in (before, name)))
            for prefix in ("", BLIND)
        )
        beyond = gain_by_looking(seeing, unseeing, metrics=CHOOSING)
        if beyond.low <= 0:
            span = f"{100 * beyond.value:+.1f} points [{100 * beyond.low:+.1f}, {100 * beyond.high:+.1f}]"
            self.sentences.append(
                f"{name} is not shown to have gained by looking: on validation it gained {100 * gain:.1f} points with its "
                f"images and {100 * (blind[1] - blind[0]):.1f} with black ones, a difference of {span} (95 % interval, paired, "
                "by image). What it learned may lie in the questions rather than in the images."
            )

    def learn_right(self, training: SftOptions, rounds: Rounds, policy: Path) -> None:
        """Train `policy` once more on the labels and on all that the expert found right in the rounds."""
        self.policies.append(FINAL)
        try:
            rounds.learn_what_was_right(training, policy)
        except ConflictError:
            # Of fewer rounds than there are now, or with other options: the last step of a run is no loss.
            for folder in (self.folder.final, self.folder.evaluations(FINAL), self.folder.evaluations(BLIND + FINAL)):
                remove_folder(folder)
            rounds.learn_what_was_right(training, policy)

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

    def predictions(self, name: str, samples: Path) -> Iterable[Prediction]:
        """What a policy, or baseline, answered to a benchmark that it was evaluated on, read as it is gone through."""
        return stream_records(self.folder.evaluation(name, samples.stem), "predictions", Prediction)

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
                    mine, sfts = (self.predictions(policy, samples) for policy in (name, SFT))
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
