"""Reads a run directory into typed values: everything the report shows comes from here, nothing from elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from stllava.config import RunOptions, validate
from stllava.data.prepare import image_root_of
from stllava.errors import StllavaError
from stllava.records import Answers, JudgeCheck, Judgment, Manifest, Outcome, Prediction, Preference, Question
from stllava.report.wording import FINAL
from stllava.store import CHECK, MANIFEST, PLAN, read_manifest, read_plan, read_records

M = TypeVar("M", bound=BaseModel)
ROUND_STAGES = ("ask", "answer", "judge", "pair", "dpo")
JUDGE_CHECK = "judge-check"
"""The folder of a run in which a check of its expert is looked for."""


@dataclass(frozen=True)
class Round:
    """One round of self-training as far as it went; stages that did not run are absent."""

    name: str
    manifests: dict[str, Manifest]
    questions: tuple[Question, ...]
    answers: tuple[Answers, ...]
    judgments: tuple[Judgment, ...]
    preferences: tuple[Preference, ...]


@dataclass(frozen=True)
class RunFiles:
    """A run directory, read."""

    options: RunOptions
    outcome: Outcome
    manifests: dict[str, Manifest]
    """Every stage's manifest by its folder, in the order of the run: data, sft, round-1/ask, …"""
    rounds: tuple[Round, ...]
    predictions: dict[str, dict[str, tuple[Prediction, ...]]]
    """By benchmark, then by policy or baseline."""
    images: Path
    """The image root."""
    check: JudgeCheck | None = None
    """How far the expert can be trusted, where `stllava judge --check` measured it."""

    @property
    def policies(self) -> tuple[str, ...]:
        """Trained policies, then baselines: the order of every table and chart."""
        return (*self.outcome.policies, *self.outcome.baselines)


def read_run_files(run: Path) -> RunFiles:
    """Read a finished run directory; a stage folder without a manifest is refused."""
    options = validate(RunOptions, read_plan(run), source=str(run / PLAN))
    outcome = _parse(run / "outcome.json", Outcome)
    manifests = {name: read_manifest(run / name) for name in ("data", "sft")}
    before = [name for name in ("model", "align") if (run / name).is_dir() and (name == "model" or options.align is not None)]
    manifests |= {name: read_manifest(run / name) for name in before}
    # More rounds may have been run, or begun, than this outcome is of.
    folders = [run / f"round-{number}" for number in range(1, options.rounds + 1)]
    rounds = tuple(_round(folder, whole=folder.name in outcome.policies) for folder in folders if folder.is_dir())
    for part in rounds:
        manifests |= {f"{part.name}/{stage}": manifest for stage, manifest in part.manifests.items()}
    final = {f"{FINAL}/{stage}": run / FINAL / stage for stage in ("consolidate", "sft")}
    manifests |= {name: read_manifest(at) for name, at in final.items() if FINAL in outcome.policies}
    predictions: dict[str, dict[str, tuple[Prediction, ...]]] = {}
    for policy in (*outcome.policies, *outcome.baselines):
        for folder in sorted(path for path in (run / "evaluate" / policy).glob("*") if path.is_dir()):
            manifests[f"evaluate/{policy}/{folder.name}"] = read_manifest(folder)
            records = tuple(read_records(folder, "predictions", Prediction))
            predictions.setdefault(folder.name, {})[policy] = records
    checked = run / JUDGE_CHECK
    check = _parse(checked / CHECK, JudgeCheck) if (checked / MANIFEST).is_file() else None
    return RunFiles(options, outcome, manifests, rounds, predictions, image_root_of(options.data, run / "data"), check)


def _round(folder: Path, *, whole: bool) -> Round:
    """A round; of one that made no policy, the stages that were finished."""
    there = [stage for stage in ROUND_STAGES if (folder / stage / ("" if whole else MANIFEST)).exists()]
    manifests = {stage: read_manifest(folder / stage) for stage in there}
    return Round(
        name=folder.name,
        manifests=manifests,
        questions=tuple(read_records(folder / "ask", "questions", Question)) if "ask" in manifests else (),
        answers=tuple(read_records(folder / "answer", "answers", Answers)) if "answer" in manifests else (),
        judgments=tuple(read_records(folder / "judge", "judgments", Judgment)) if "judge" in manifests else (),
        preferences=tuple(read_records(folder / "pair", "preferences", Preference)) if "pair" in manifests else (),
    )


def _parse(path: Path, kind: type[M]) -> M:
    if not path.is_file():
        raise StllavaError(
            f"no file {path}",
            expected="the directory of a finished run",
            remedy="Run `stllava run` to the end first: it goes on where it stopped.",
        )
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise StllavaError(
            f"{path}: {first['msg']}{''.join(f' at {part!r}' for part in first['loc'][-1:])}",
            expected="the file as `stllava run` wrote it",
            remedy="Restore it, or delete it and run the same command again: finished work is kept.",
        ) from None
