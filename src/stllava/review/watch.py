"""A run at work, read from its files alone: nothing of it is locked, written or asked.

Reads plans, manifests, finished chunks and the notes that stages at work leave for watchers (`store.Outlook`,
`store.CurvePoint`). What was read of a file is kept until the file changes, so that looking again costs little. Whether a
process is at work is told by the kernel's list of locks; where there is none, by how lately a file changed.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from stllava.config import validate
from stllava.errors import StllavaError
from stllava.recipe import RunOptions
from stllava.records import Answers, Judgment, Manifest, Outcome, Question, Record, Score
from stllava.report.run_files import read_outcome
from stllava.report.wording import CHIEF
from stllava.rundir import ROUND, RunDir
from stllava.store import (
    CURVES,
    LOCK,
    MANIFEST,
    OUTLOOK,
    PARTS,
    PLAN,
    SHARDS,
    CurvePoint,
    Outlook,
    Plan,
    planned_shard,
    read_chunk,
    read_manifest,
    read_plan,
    read_record,
)

R = TypeVar("R", bound=Record)
Stamp = tuple[int, int]
"""When a file was written, in nanoseconds, and its size."""
Status = Literal["done", "at work", "stopped"]

LOCKS = Path("/proc/locks")
LATELY = 120.0
"""Without the kernel's list, a stage whose files changed in so many seconds is at work."""
RUN = "run"
"""What a run's plan is of."""
AGAIN = 3
"""Parts of a stage vanish when it is done, perhaps just as they are read."""
DEPTH = 4
TAIL_BYTES = 1 << 18
NEWEST = 6
RATED = 20
"""Of so many last chunks, or points of a curve, the rate is."""
MANY_FLIPS, MANY_TIES, MANY_REPEATS, MANY_ERRORS = 0.25, 0.7, 0.5, 0.1


@dataclass(frozen=True)
class StageView:
    """One stage as far as it is."""

    name: str
    """Its folder in the run."""
    stage: str
    """What it does."""
    status: Status
    started: float
    """Seconds since 1970."""
    manifest: Manifest | None = None
    """What it came to, where it is done."""
    done: int = 0
    """Items done, or steps of a training."""
    items: int = 0
    """Items to do; 0 where nobody said."""
    unit: str = ""
    rate: float = 0.0
    """Items a second, of late."""
    changed: float = 0.0
    """When a file of it last changed."""
    curves: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """By name, of a training."""

    @property
    def seconds_left(self) -> float | None:
        """How long it will take at this rate; None where that is not known."""
        return (self.items - self.done) / self.rate if self.rate > 0 and self.items else None


@dataclass(frozen=True)
class ShownVerdict:
    """Answers to a question and what the expert says of them, if it has."""

    image: str | None
    question: str
    answers: tuple[tuple[str, float | None], ...]
    """Different answers, each with its score; the best ones first."""
    reason: str


@dataclass(frozen=True)
class RunView:
    """A run as far as it is."""

    name: str
    stages: tuple[StageView, ...]
    """In the order in which they began."""
    rounds: int
    """Rounds that are allowed; 0 where the plan cannot be read."""
    at_work: bool
    outcome: Outcome | None
    scores: tuple[Score, ...]
    """Chief metrics of every policy scored so far."""
    newest: tuple[ShownVerdict, ...]
    warnings: tuple[str, ...]
    images: Path | None
    """The image root, once the data stage has noted it."""

    @property
    def current(self) -> StageView | None:
        """The stage that is at work, or at which the run stopped; None of a run that is done."""
        open_stages = [stage for stage in self.stages if stage.status != "done"]
        return open_stages[-1] if open_stages else None


def _planned_stage(folder: Path) -> str:
    """What is being made in a folder; of a plan that another version wrote, or that is half written, a run."""
    try:
        return read_record(folder / PLAN, Plan).stage
    except StllavaError:
        return RUN


class RunReader:
    """Reads one run again and again."""

    def __init__(self, run: Path) -> None:
        """Read the run in that folder; it may only just have begun."""
        if not (run / PLAN).is_file():
            raise StllavaError(
                f"{run} has no {PLAN}", expected="the folder of a run", remedy="Check the path; `stllava run` prints it."
            )
        if (stage := _planned_stage(run)) != RUN:
            raise StllavaError(
                f"{run} is the folder of {stage}, and no run",
                expected="the folder of a run",
                remedy="Name the run that it is part of, if it is of any; `stllava run` prints it.",
            )
        self.run = RunDir(run)
        self._manifests: dict[Path, tuple[Stamp, Manifest]] = {}
        self._tails: dict[Path, tuple[Stamp, Sequence[Record]]] = {}
        self._rounds: tuple[Stamp, int] | None = None

    def read(self) -> RunView:
        """The run as it is now; where a stage ends while it is read, once more.

        Raises:
            StllavaError: Where the run is no longer there, or a file of it is damaged.
        """
        for _ in range(AGAIN):
            try:
                return self._read()
            except FileNotFoundError:
                continue
        raise StllavaError(
            f"{self.run.path} is no longer the folder of a run",
            expected="the run in its place",
            remedy="Put it back, or give `stllava watch` its new path.",
        )

    def _read(self) -> RunView:
        """The run as it is now."""
        locked = locked_inodes()
        stages = sorted((self._stage(folder, locked) for folder in _stage_folders(self.run.path)), key=lambda one: one.started)
        outcome = read_outcome(self.run) if self.run.outcome.is_file() else None
        data = self._manifest(self.run.data)
        return RunView(
            name=outcome.name if outcome is not None else self.run.path.name,
            stages=tuple(stages),
            rounds=self._planned(),
            at_work=_is_locked(self.run.path, locked) or any(stage.status == "at work" for stage in stages),
            outcome=outcome,
            scores=tuple(self._scores(stages)),
            newest=tuple(self._newest()),
            warnings=tuple(warnings_of(stages)),
            images=self.run.image_root if data is not None and data.image_root is not None else None,
        )

    def _planned(self) -> int:
        """How many rounds the run may have; 0 where another version wrote its plan."""
        stamp = _stamp(self.run.plan)
        if self._rounds is None or self._rounds[0] != stamp:
            try:
                rounds = validate(RunOptions, read_plan(self.run.path), source=str(self.run.plan)).rounds
            except StllavaError:
                rounds = 0  # Its stages can be watched all the same.
            self._rounds = (stamp, rounds)
        return self._rounds[1]

    def _stage(self, folder: Path, locked: frozenset[int] | None) -> StageView:
        """One stage as it is now."""
        view = _stage_view(self.run.name_of(folder), folder, self._manifest(folder), locked)
        points = self._points(folder / PARTS / CURVES) if view.manifest is None else []
        return _with_points(view, points) if points else view

    def _points(self, path: Path) -> list[CurvePoint]:
        """The points of a training so far; of a step that was done again the last one."""
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        found = [CurvePoint.model_validate_json(line) for line in lines if line.endswith(b"\n")]
        return sorted({point.step: point for point in found}.values(), key=lambda point: point.step)

    def _tail(self, path: Path, record_type: type[R], count: int) -> list[R]:
        """The last records of a file of a finished stage."""
        if not path.is_file():
            return []
        stamp = _stamp(path)
        kept = self._tails.get(path)
        if kept is None or kept[0] != stamp:
            kept = self._tails[path] = (stamp, tail_of(path, record_type, count))
        return [row for row in kept[1] if isinstance(row, record_type)]

    def _manifest(self, folder: Path) -> Manifest | None:
        """A stage's manifest, where it is done."""
        path = folder / MANIFEST
        if not path.is_file():
            return None
        stamp = _stamp(path)
        kept = self._manifests.get(path)
        if kept is None or kept[0] != stamp:
            kept = self._manifests[path] = (stamp, read_manifest(folder))
        return kept[1]

    def _scores(self, stages: Sequence[StageView]) -> Iterator[Score]:
        """The chief metrics of all policies scored so far."""
        for stage in stages:
            if stage.manifest is not None and stage.manifest.stage == "evaluate":
                path = self.run.path / stage.name / "scores.jsonl"
                yield from (score for score in self._tail(path, Score, 1000) if score.metric in CHIEF)

    def _newest(self) -> Iterator[ShownVerdict]:
        """The newest answers with their verdicts; of a round without answers, its newest questions."""
        names = sorted((path.name for path in self.run.path.glob(f"{ROUND}*")), key=lambda name: (len(name), name))
        for name in reversed(names):
            folder = self.run.stage(name, "answer")
            answers = self._tail(folder / "answers.jsonl", Answers, NEWEST) or newest_of_chunks(folder, Answers, NEWEST)
            if answers:
                said = self._tail(self.run.stage(name, "judge") / "judgments.jsonl", Judgment, 4 * NEWEST)
                judged = {row.answers_id: row for row in said}
                yield from (_shown(row, judged.get(row.id)) for row in reversed(answers))
                return
            questions = self._tail(self.run.stage(name, "ask") / "questions.jsonl", Question, NEWEST)
            if questions:
                yield from (ShownVerdict(next(iter(row.images), None), row.text, (), "") for row in reversed(questions))
                return


def locked_inodes() -> frozenset[int] | None:
    """The files that processes of this machine hold locks of, by inode; None where the kernel does not say."""
    try:
        lines = LOCKS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return frozenset(int(part.rsplit(":", 1)[1]) for line in lines for part in line.split() if part.count(":") == 2)


def tail_of(path: Path, record_type: type[R], count: int) -> list[R]:
    """The last records of a file of lines, whole ones alone; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")[1 if start else 0 : -1]
    return [record_type.model_validate_json(line) for line in lines[-count:]]


def newest_of_chunks(folder: Path, record_type: type[R], count: int) -> list[R]:
    """The last records of the newest finished chunk of a stage at work."""
    chunks = sorted((path for path in _parts_of(folder) if path.suffix == ".jsonl"), key=lambda path: path.stat().st_mtime)
    found = read_chunk(chunks[-1], record_type) if chunks else None
    return found.records[-count:] if found is not None else []


def warnings_of(stages: Sequence[StageView]) -> Iterator[str]:
    """What a run's owner should know before it is over."""
    for stage in stages:
        told = stage.manifest.measures if stage.manifest is not None else {}
        if told.get("flip_share", 0.0) > MANY_FLIPS:
            yield f"{stage.name}: in {told['flip_share']:.0%} of comparisons the order of the answers decided which one won."
        if told.get("tie_share", 0.0) > MANY_TIES:
            yield f"{stage.name}: the expert could not decide {told['tie_share']:.0%} of comparisons."
        if told.get("wrong", 0.0) > MANY_ERRORS:
            yield f"{stage.name}: by labelled questions the expert is wrong about {told['wrong']:.0%} of single answers."
        if stage.manifest is not None and stage.manifest.counts_in:
            repeated = stage.manifest.dropped.get("repeated", 0) / stage.manifest.counts_in
            if repeated > MANY_REPEATS:
                yield f"{stage.name}: {repeated:.0%} of the questions were asked of the same image before."
        chosen = stage.curves.get("chosen_logp", ())
        if len(chosen) > 1 and chosen[-1][1] < 1.5 * chosen[0][1]:
            yield (
                f"{stage.name}: the log-probability of chosen answers fell from {chosen[0][1]:.3g} to {chosen[-1][1]:.3g}: "
                "the policy may be unlearning them."
            )


def cost_of(stages: Sequence[StageView]) -> list[tuple[str, dict[str, float]]]:
    """What the expert was asked and what that cost, by stage, as far as stages are done."""
    kept = ("asked", "verdicts", "prompt_tokens", "completion_tokens", "cost")
    judged = [(stage.name, stage.manifest.measures) for stage in stages if stage.manifest and stage.manifest.stage == "judge"]
    return [(name, {key: told[key] for key in kept if key in told}) for name, told in judged]


def _shown(answers: Answers, judgment: Judgment | None) -> ShownVerdict:
    """Answers and their verdict, equal answers once."""
    scores = judgment.scores if judgment is not None and judgment.scores is not None else (None,) * len(answers.completions)
    said: dict[str, float | None] = {}
    for text, score in zip(answers.final_answers, scores, strict=True):
        said.setdefault(text, score)
    ranked = sorted(said.items(), key=lambda row: -(row[1] or 0.0))
    reason = "" if judgment is None else judgment.reason if judgment.scores is not None else f"no verdict: {judgment.cause}"
    return ShownVerdict(next(iter(answers.images), None), answers.question, tuple(ranked[:4]), reason)


def shards_of(stage: Path) -> list[StageView]:
    """The shards of a stage that have begun, as far as they are, in the order of their numbers; each is named i/n.

    Of a shard that is there twice both are told of.
    """
    locked = locked_inodes()
    found: list[tuple[int, StageView]] = []
    for folder in (stage / SHARDS).iterdir():
        if (folder / PLAN).is_file():
            shard = planned_shard(folder, read_record(folder / PLAN, Plan).inputs)
            manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None
            found.append((shard.number, _stage_view(str(shard), folder, manifest, locked)))
    return [view for _, view in sorted(found, key=lambda one: one[0])]


def _stage_view(name: str, folder: Path, manifest: Manifest | None, locked: frozenset[int] | None) -> StageView:
    """A stage as it is now, but for the curves of a training that is not done."""
    if manifest is not None:
        curves = {curve: tuple(made) for curve, made in manifest.curves.items()}
        return StageView(name, manifest.stage, "done", _birth(folder), manifest, curves=curves)
    plan = folder / PLAN
    changed = max((path.stat().st_mtime for path in (plan, *_parts_of(folder)) if path.exists()), default=0.0)
    at_work = _is_locked(folder, locked) if locked is not None else time.time() - changed < LATELY
    begun = StageView(name, folder.name, "at work" if at_work else "stopped", _birth(folder), changed=changed)
    return _with_chunks(begun, folder)


def _with_chunks(stage: StageView, folder: Path) -> StageView:
    """A stage at work with what its finished chunks and its note of what is to do say."""
    items = done = 0
    unit, times = "", list[float]()
    for parts in (folder / PARTS, *(folder / SHARDS).glob(f"*/{PARTS}")):
        if not (parts / OUTLOOK).is_file():
            continue
        outlook = read_record(parts / OUTLOOK, Outlook)
        made = [path.stat().st_mtime for path in parts.glob("*.jsonl") if not path.name.startswith(".")]
        unit, items = outlook.unit, items + outlook.items
        done += min(outlook.items, len(made) * outlook.chunk)
        times += [moment for moment in made for _ in range(outlook.chunk)]
    recent = sorted(times)[-RATED * max(1, len(times) // max(1, len(set(times)))) :]
    spent = recent[-1] - recent[0] if recent else 0.0
    fresh = sum(moment > recent[0] for moment in recent) if recent else 0
    return replace(stage, done=done, items=items, unit=unit, rate=fresh / spent if spent > 0 else 0.0)


def _with_points(stage: StageView, points: Sequence[CurvePoint]) -> StageView:
    """A training with the points of its curves so far."""
    names = dict.fromkeys(name for point in points for name in point.values)
    curves = {
        name: tuple((float(point.step), point.values[name]) for point in points if name in point.values) for name in names
    }
    recent = points[-RATED:]
    spent = recent[-1].at - recent[0].at
    rate = (recent[-1].step - recent[0].step) / spent if spent > 0 else 0.0
    last = points[-1]
    return replace(stage, done=last.step, items=last.steps, unit="steps", rate=rate, curves=curves)


def _stage_folders(run: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folders of the run's stages; what lies below a stage is its own."""
    for entry in sorted(run.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            if (entry / PLAN).is_file() or (entry / MANIFEST).is_file():
                yield entry
            elif depth > 1:
                yield from _stage_folders(entry, depth - 1)


def _parts_of(folder: Path) -> list[Path]:
    """The finished chunks of a stage at work, of its shards too, and the curves of a training."""
    places = (folder / PARTS, *(folder / SHARDS).glob(f"*/{PARTS}"))
    return [path for place in places for path in (*place.glob("*.jsonl"), place / CURVES) if path.is_file()]


def _is_locked(folder: Path, locked: frozenset[int] | None) -> bool:
    lock = folder / LOCK
    return locked is not None and lock.is_file() and lock.stat().st_ino in locked


def _birth(folder: Path) -> float:
    """When a stage began: its lock is made before anything else, and never written."""
    first = folder / LOCK
    return (first if first.is_file() else folder).stat().st_mtime


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_mtime_ns, found.st_size
