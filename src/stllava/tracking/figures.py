"""What of a run a tracker is told: numbers, under names that stllava itself gives.

Reads the manifests of a run's finished stages and its outcome; writes nothing.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from stllava.records import Outcome, content_id
from stllava.rundir import RunDir
from stllava.store import MANIFEST, read_formatted, read_manifest

RUN = "run"
"""What the figures of the whole run stand under."""
PLAIN = re.compile(r"[\w .,()%/-]{1,80}")
"""What a name may look like that is sent: a cause that holds anything else is counted as other."""


@dataclass(frozen=True)
class StageFigures:
    """What is sent of one finished stage."""

    name: str
    """Where it lies in the run: round-1/dpo."""
    digest: str
    """Changes where the stage is made anew."""
    values: dict[str, float] = field(default_factory=dict)
    """Figures by name: counts, causes, measures, scores with their intervals."""
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Series of (step, value) by name."""


def stage_figures(run: Path) -> list[StageFigures]:
    """The figures of every finished stage in the order in which they began, those of the outcome last."""
    folder = RunDir(run)
    found = []
    for path in run.rglob(MANIFEST):
        if path.parent == run:
            continue
        manifest = read_manifest(path.parent)
        name = folder.name_of(path.parent)
        values = {"in": float(manifest.counts_in), "out": float(manifest.counts_out), "seconds": manifest.seconds}
        values |= {measure: value for measure, value in manifest.measures.items() if PLAIN.fullmatch(measure)}
        for cause, count in manifest.dropped.items():
            known = cause if PLAIN.fullmatch(cause) else "other"
            values[f"left out/{known}"] = values.get(f"left out/{known}", 0.0) + count
        found.append((manifest.started, StageFigures(name, manifest.digest, values, manifest.curves)))
    figures = [stage for _, stage in sorted(found, key=lambda pair: (pair[0], pair[1].name))]
    if folder.outcome.is_file():
        outcome = read_formatted(folder.outcome, Outcome)
        figures.append(StageFigures(RUN, content_of(outcome), dict(_scores(outcome))))
    return figures


def content_of(outcome: Outcome) -> str:
    """What changes where the scores do."""
    return content_id("scores", [list(pair) for pair in _scores(outcome)])


def _scores(outcome: Outcome) -> Iterator[tuple[str, float]]:
    """Every score and every gain with the ends of its interval."""
    for score in outcome.scores:
        name = f"{score.benchmark}/{score.policy}/{score.metric}"
        yield from ((name, score.value), (f"{name}/low", score.low), (f"{name}/high", score.high))
    for gain in outcome.differences:
        name = f"{gain.benchmark}/{gain.policy} over {gain.against}/{gain.metric}"
        yield from ((name, gain.value), (f"{name}/low", gain.low), (f"{name}/high", gain.high))


def numbers_of(options: BaseModel, before: str = "") -> dict[str, float | bool]:
    """The options that are numbers or switches, by their keys; texts, paths and what users name themselves stay here."""
    found: dict[str, float | bool] = {}
    for name in type(options).model_fields:
        value: object = getattr(options, name)
        if isinstance(value, bool | int | float):
            found[before + name] = value
        elif isinstance(value, BaseModel):
            found |= numbers_of(value, f"{before}{name}.")
    return found


def flat(stage: StageFigures) -> Mapping[str, float]:
    """The values of a stage by their full names."""
    return {f"{stage.name}/{name}": value for name, value in stage.values.items()}
