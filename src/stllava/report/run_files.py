"""Reads a run directory into typed values: everything the report shows comes from here, nothing from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stllava.config import validate
from stllava.errors import StllavaError
from stllava.recipe import RunOptions
from stllava.records import (
    Answers,
    ItemsCheck,
    JudgeCheck,
    Judgment,
    Manifest,
    Outcome,
    Prediction,
    Preference,
    Question,
    VotesCheck,
)
from stllava.rundir import AUDIT_STAGES, FINAL, ROUND_STAGES, SFT, RoundStage, RunDir, round_name
from stllava.store import CHECK, MANIFEST, index_records, read_formatted, read_manifest, read_plan, read_record


@dataclass(frozen=True)
class Round:
    """One round of self-training as far as it went; stages that did not run are absent."""

    name: str
    manifests: dict[RoundStage, Manifest]
    questions: Sequence[Question]
    answers: Sequence[Answers]
    judgments: Sequence[Judgment]
    preferences: Sequence[Preference]
    votes: VotesCheck | None = None
    """What readers say of its verdicts, where `stllava judge-check` has looked at their votes."""


@dataclass(frozen=True)
class RunFiles:
    """A run directory, read; records are read from disk as they are asked for."""

    options: RunOptions
    outcome: Outcome
    manifests: dict[str, Manifest]
    """Every stage's manifest by its folder, in the order of the run: data, sft, round-1/ask, …"""
    rounds: tuple[Round, ...]
    predictions: dict[str, dict[str, Sequence[Prediction]]]
    """By benchmark, then by policy or baseline."""
    images: Path
    """The image root."""
    audit: Manifest | None = None
    """The expert's verdicts on labelled questions, where the run began with an audit of it."""
    check: JudgeCheck | None = None
    """How far the expert can be trusted, where `stllava judge --check` measured it."""
    read: dict[str, ItemsCheck] = field(default_factory=dict)
    """By the stage's name, what readers say of a benchmark's answers or of questions, where `stllava judge-check` looked."""

    @property
    def policies(self) -> tuple[str, ...]:
        """Trained policies, then baselines: the order of every table and chart."""
        return (*self.outcome.policies, *self.outcome.baselines)


def read_run_files(folder: Path) -> RunFiles:
    """Read a finished run directory; a stage folder without a manifest is refused."""
    run = RunDir(folder)
    options = validate(RunOptions, read_plan(folder), source=str(run.plan))
    outcome = read_outcome(run)
    before = [run.model] if run.model.is_dir() else []
    before += [run.align] if run.align.is_dir() and options.align is not None else []
    manifests = {run.name_of(at): read_manifest(at) for at in (run.data, run.policy(SFT), *before)}
    audited = (*(run.audit_stage(stage) for stage in AUDIT_STAGES), run.expert_audit) if options.judge.audit else ()
    manifests |= _finished(run, *audited)
    # More rounds may have been run, or begun, than this outcome is of.
    names = [name for name in map(round_name, range(1, options.rounds + 1)) if (folder / name).is_dir()]
    rounds = tuple(_round(run, name, whole=name in outcome.policies) for name in names)
    for part in rounds:
        manifests |= {f"{part.name}/{stage}": manifest for stage, manifest in part.manifests.items()}
        manifests |= _finished(run, run.image_gain(part.name))
    # A judge of which nothing came ended the rounds, and the run has told so.
    manifests |= _finished(run, run.own_judge)
    if FINAL in outcome.policies:
        manifests |= {run.name_of(at): read_manifest(at) for at in (run.final_data, run.policy(FINAL))}
    predictions: dict[str, dict[str, Sequence[Prediction]]] = {}
    for policy in (*outcome.policies, *outcome.baselines):
        for evaluation in sorted(path for path in run.evaluations(policy).glob("*") if path.is_dir()):
            manifests[run.name_of(evaluation)] = read_manifest(evaluation)
            records = index_records([evaluation], "predictions", Prediction)
            predictions.setdefault(evaluation.name, {})[policy] = records
    checked = (run.judge_check / MANIFEST).is_file()
    check = read_record(run.judge_check / CHECK, JudgeCheck) if checked else None
    audit = manifests.get(run.name_of(run.audit_stage("judge")))
    voted = {name: path for name in manifests if (path := run.stage_review(folder / name) / CHECK).is_file()}
    read = {name: read_record(path, ItemsCheck) for name, path in voted.items()}
    return RunFiles(options, outcome, manifests, rounds, predictions, run.image_root, audit, check, read)


def _finished(run: RunDir, *folders: Path) -> dict[str, Manifest]:
    """The manifests of those folders that have one, by what they are called in the run."""
    return {run.name_of(at): read_manifest(at) for at in folders if (at / MANIFEST).is_file()}


def _round(run: RunDir, name: str, *, whole: bool) -> Round:
    """A round; of one that made no policy, the stages that were finished."""
    folders = {stage: run.stage(name, stage) for stage in ROUND_STAGES}
    manifests = {stage: read_manifest(at) for stage, at in folders.items() if (at / ("" if whole else MANIFEST)).exists()}
    return Round(
        name=name,
        manifests=manifests,
        questions=index_records([folders["ask"]], "questions", Question) if "ask" in manifests else (),
        answers=index_records([folders["answer"]], "answers", Answers) if "answer" in manifests else (),
        judgments=index_records([folders["judge"]], "judgments", Judgment) if "judge" in manifests else (),
        preferences=_answer_pairs(folders["pair"]) if "pair" in manifests else (),
        votes=read_record(voted, VotesCheck) if (voted := run.review(name) / CHECK).is_file() else None,
    )


def _answer_pairs(pairs: Path) -> Sequence[Preference]:
    """The pairs of answers; those of questions are counted in the manifest."""
    every = index_records([pairs], "preferences", Preference)
    return every.rearranged(number for number, row in enumerate(every) if row.speaker == "assistant")


def read_outcome(run: RunDir) -> Outcome:
    """What a finished run came to."""
    if not run.outcome.is_file():
        raise StllavaError(
            f"no file {run.outcome}",
            expected="the directory of a finished run",
            remedy="Run `stllava run` to the end first: it goes on where it stopped.",
        )
    return read_formatted(run.outcome, Outcome)
