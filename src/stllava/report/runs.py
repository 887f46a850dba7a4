"""Reads finished runs and single evaluations for a comparison, and finds the runs that differ in nothing but the seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stllava.errors import StllavaError
from stllava.records import Manifest, Prediction, Score, content_id
from stllava.report.run_files import read_outcome
from stllava.rundir import BLIND, SFT, RunDir
from stllava.store import read_manifest, read_plan, read_records

BEST = "best"
"""The name of a row of several seeds, of which each brings the policy that its validation split chose."""
SHARED = 0.9
"""Evaluations with at least this share of samples in common are of the same set, though some could not be answered."""

Kind = Literal["policy", "best", "baseline"]


@dataclass(frozen=True)
class Evaluation:
    """A policy's answers to a benchmark, and the scores that were stored beside them."""

    predictions: tuple[Prediction, ...]
    stored: tuple[Score, ...]
    manifest: Manifest


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, or one evaluation, which has no seed."""

    folder: Path
    name: str
    seed: int | None
    recipe: str
    """Hash of all options but the seed."""
    policies: tuple[str, ...]
    baselines: tuple[str, ...]
    best: str
    """Empty of one evaluation."""
    evaluations: dict[str, dict[str, Evaluation]]
    """By policy or baseline, then by benchmark."""


@dataclass(frozen=True, eq=False)
class Entrant:
    """A policy of a run, or the same policy of several seeds: a row of every table."""

    run: str
    policy: str
    kind: Kind
    members: tuple[tuple[Run, str], ...]
    """Each run and what its policy is called there."""

    def evaluations(self, benchmark: str) -> list[tuple[int | None, Evaluation]]:
        """The members' seeds and answers, of those that answered the benchmark."""
        return [
            (run.seed, run.evaluations[name][benchmark])
            for run, name in self.members
            if name in run.evaluations and benchmark in run.evaluations[name]
        ]


def read_run(folder: Path) -> Run:
    """A finished run or the folder of one evaluation; anything else is refused."""
    outcome = RunDir(folder).outcome
    if outcome.is_file():
        return _read_whole_run(folder)
    if not (folder / "scores.jsonl").is_file():
        raise StllavaError(
            f"{folder} is neither a finished run nor an evaluation",
            expected=f"a folder with {outcome.name} (a run) or with scores.jsonl and predictions.jsonl (an evaluation)",
            remedy="Name a folder that `stllava run` or `stllava evaluate` has finished.",
        )
    evaluation = _read_evaluation(folder)
    score = evaluation.stored[0]
    return Run(folder, folder.name, None, "", (score.policy,), (), "", {score.policy: {score.benchmark: evaluation}})


def _read_whole_run(folder: Path) -> Run:
    run = RunDir(folder)
    outcome = read_outcome(run)
    options = read_plan(folder)
    seed = options.pop("seed")
    if not isinstance(seed, int):
        raise StllavaError(f"{folder}: seed {seed!r} in its plan", expected="a whole number", remedy="Restore plan.json.")
    evaluations: dict[str, dict[str, Evaluation]] = {}
    for policy, benchmark in dict.fromkeys((score.policy, score.benchmark) for score in outcome.scores):
        evaluations.setdefault(policy, {})[benchmark] = _read_evaluation(run.evaluation(policy, benchmark))
    recipe = content_id(options)
    return Run(folder, outcome.name, seed, recipe, outcome.policies, outcome.baselines, outcome.best, evaluations)


def _read_evaluation(folder: Path) -> Evaluation:
    stored = tuple(read_records(folder, "scores", Score))
    predictions = tuple(read_records(folder, "predictions", Prediction))
    if not stored or not predictions:
        raise StllavaError(f"{folder} scored no answer", expected="an evaluation with answers", remedy="Leave it out.")
    return Evaluation(predictions, stored, read_manifest(folder))


def combine_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs with the same options but the seed together; a seed that is there already begins another group."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            seeds = {other.seed for other in group}
            if run.seed is not None and run.recipe == group[0].recipe and run.seed not in seeds:
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def label_groups(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The shortest names that tell the groups apart: their experiments', else their folders', else their paths."""
    by_name = [group[0].name for group in groups]
    by_folder = [", ".join(run.folder.name for run in group) for group in groups]
    by_path = [", ".join(run.folder.as_posix() for run in group) for group in groups]
    return next(names for names in (by_name, by_folder, by_path) if len({*names}) == len(groups) or names is by_path)


def list_entrants(group: Sequence[Run], label: str) -> list[Entrant]:
    """Every policy of a group in the order of its runs, the best one of each of several seeds, then the baselines."""
    several = len(group) > 1
    entrants = []
    for name in dict.fromkeys(name for run in group for name in run.policies):
        kind: Kind = "best" if not several and name == group[0].best else "policy"
        entrants.append(Entrant(label, name, kind, tuple((run, name) for run in group if name in run.policies)))
    if several and any(run.best != SFT for run in group):
        entrants.append(Entrant(label, BEST, "best", tuple((run, run.best) for run in group)))
    for name in dict.fromkeys(name for run in group for name in run.baselines):
        entrants.append(Entrant(label, name, "baseline", tuple((run, name) for run in group if name in run.baselines)))
    blind = tuple((run, BLIND + run.best) for run in group if BLIND + run.best in run.baselines)
    if several and blind and any(run.best != SFT for run in group):
        entrants.append(Entrant(label, BLIND + BEST, "baseline", blind))
    return entrants


def chief(entrants: Sequence[Entrant]) -> list[Entrant]:
    """The first and the best policy of a group, and the baselines that are not of another policy."""
    policies = [entrant for entrant in entrants if entrant.kind != "baseline"]
    kept = [entrant for entrant in policies if entrant is policies[0] or entrant.kind == "best"]
    names = {entrant.policy for entrant in kept}
    return [
        entrant
        for entrant in entrants
        if entrant in kept
        or (
            entrant.kind == "baseline" and (not entrant.policy.startswith(BLIND) or entrant.policy.removeprefix(BLIND) in names)
        )
    ]


def shared_samples(mine: Evaluation, theirs: Evaluation) -> list[Prediction]:
    """My predictions on the samples that both answered; none where the two are of different sets."""
    known = {_sample(row) for row in theirs.predictions}
    shared = [row for row in mine.predictions if _sample(row) in known]
    return shared if len(shared) >= SHARED * max(len(mine.predictions), len(known)) else []


def _sample(row: Prediction) -> tuple[str, str, str, tuple[str, ...]]:
    """An id alone may be a benchmark's own count, the same in another benchmark."""
    return row.sample_id, row.image, row.question, row.targets
