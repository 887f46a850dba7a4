"""Trackers get numbers under our own names: no path, no text, no image, nothing of the machine or its user."""

import json
import re
import socket
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.reviewing import write_round
from helpers.tracked import PACKAGES, PLANTED, keep_trackio_in, kept, write_outcome, write_run
from stllava.cli import main
from stllava.config import PairOptions
from stllava.data.sources import PhantomData
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.recipe import RunOptions
from stllava.store import Stage
from stllava.tracking import Tracking, numbers_of, stage_figures, track_run
from stllava.tracking.figures import StageFigures
from stllava.tracking.samples import ShownSample, host_allowed
from stllava.tracking.trackers import Tool

pytestmark = pytest.mark.filterwarnings("ignore")  # The trackers' own, of what they import.
TOOLS: tuple[Tool, ...] = get_args(Tool)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in a folder that names a patient, as its records, causes and options do."""
    return write_run(tmp_path / f"{PLANTED}-hans" / "run")


def test_what_is_sent_are_counts_causes_curves_and_scores(run: Path) -> None:
    write_outcome(run)
    *stages, whole = stage_figures(run)
    judge, dpo = sorted(stages, key=lambda stage: stage.name, reverse=True)
    assert {name: judge.values[name] for name in ("in", "out", "verdicts", "cost")} == {
        "in": 9.0,
        "out": 6.0,
        "verdicts": 6.0,
        "cost": 0.25,
    }
    assert {name: value for name, value in judge.values.items() if name.startswith("left out")} == {
        "left out/unread reply": 2.0,
        "left out/other": 1.0,
    }
    assert (dpo.name, dpo.curves) == ("round-1/dpo", {"loss": [(1.0, 0.7), (2.0, 0.5)]})
    assert whole.values["test/round-1/closed_accuracy/high"] == 0.75
    assert whole.values["test/round-1 over sft/closed_accuracy"] == 0.1


def test_of_options_numbers_and_switches_are_sent_alone() -> None:
    sent = numbers_of(RunOptions(name=PLANTED, data=PhantomData(), model=f"/home/{PLANTED}"))
    assert sent["dpo.beta"] == 0.1
    assert sent["baselines"] is True
    assert PLANTED not in json.dumps(sent)
    assert all(isinstance(value, bool | int | float) for value in sent.values())


def written(folder: Path) -> bytes:
    """Everything that a tracker keeps of a run, names of files among it; its own logs of this process stay here."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.parent.name != "logs"]
    return b"\n".join(path.name.encode() + b"\n" + path.read_bytes() for path in files)


@pytest.mark.parametrize("tool", [pytest.param(tool, marks=[pytest.mark.slow] if tool == "mlflow" else []) for tool in TOOLS])
def test_nothing_of_a_patient_the_user_or_the_machine_leaves(
    tool: Tool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(PACKAGES[tool])
    places = tmp_path / "places"
    for name in ("TRACKIO_DIR", "MLFLOW_TRACKING_DIR"):
        monkeypatch.setenv(name, str(places))
    for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME"):
        monkeypatch.setenv(name, f"{PLANTED}-{name}")
    monkeypatch.setattr(socket, "gethostname", lambda: f"{PLANTED}-host")
    monkeypatch.setattr(sys, "argv", ["stllava", "run", f"/home/{PLANTED}/recipe.yaml"])
    here = tmp_path / f"{PLANTED}-here"
    here.mkdir()
    monkeypatch.chdir(here)
    config = numbers_of(RunOptions(name="trial", data=PhantomData()))
    tracking = Tracking(tool)
    keep_trackio_in(places, tool, monkeypatch)
    assert set(track_run(run, tracking, name="trial-3", config=config)) == {"round-1/judge", "round-1/dpo"}
    write_outcome(run)
    assert track_run(run, tracking, name="trial-3", config=config) == ["run"]
    assert track_run(run, tracking, name="trial-3", config=config) == []
    found = b"".join(written(place) for place in (run / "track", places) if place.exists())
    # Where artifacts of MLflow's Default experiment would lie, in a database on this machine; a server has its own.
    found = found.replace(f"{here}/mlruns/0".encode(), b"") if tool == "mlflow" else found
    assert b"left out/unread reply" in found
    assert b"closed_accuracy" in found
    told = [found[max(0, at.start() - 60) : at.end() + 60] for at in re.finditer(PLANTED.encode(), found, re.IGNORECASE)]
    assert told == []
    assert b"Hans" not in found
    with pytest.raises(StllavaError, match="is tracked by"):
        track_run(run, Tracking("tensorboard" if tool != "tensorboard" else "wandb"), name="x", config={})


CLASSES: dict[str, str] = {
    "number": "numbers: figures, options, steps, counters, times",
    "name": "names of stages, measures, causes, benchmarks and options",
    "run": "the name of the run (the recipe's, and the seed), its project, ids drawn by chance",
    "time": "times in words",
    "version": "versions of the tool, its files and Python; the kind of system, such as linux-x86_64",
    "word": "words of the tool's own, such as scalars or FINISHED",
    "folder": "the current folder, as the place of an empty experiment; it stays in the database here",
}
"""Of what is kept, by its line in docs/tracking.md."""
WORDS: dict[Tool, set[str]] = {
    "trackio": {"metrics", "configs", "_Username", "_Created", "_Group"},
    "tensorboard": {"events", "out", "tfevents", "tensorboard.summary.writer.event_file_writer", "scalars"},
    "wandb": {"-", "_wandb", "_runtime", "_step", "_timestamp", "runtime"},
    "mlflow": {
        *("UNKNOWN", "unknown", "FINISHED", "active", "default", "Default", "mlflow.runName"),
        "Default workspace for legacy resources",
    },
}
"""All that a tool says by itself."""
DRAWN = re.compile(r"(trial-3(-[0-9a-f]{6})?|stllava|[0-9a-f]{8}|[0-9a-f]{32})")
VERSION = re.compile(r"brain\.Event:\d|\d+\.\d+\.\d+(\+[0-9a-f]{40})?|[0-9a-f]{12}|[a-z]+-(x86_64|amd64|arm64|aarch64)")
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.+]+")


def class_of(tool: Tool, value: object, names: set[str], here: Path) -> str | None:
    """Which of the classes a value is of; None of no one."""
    text = str(value)
    if isinstance(value, str) and DRAWN.fullmatch(text):
        return "run"  # Before numbers: an id may be all digits.
    if isinstance(value, bool | int | float) or re.fullmatch(r"\d*\.?\d+(e-?\d+)?|True|False", text):
        return "number"
    if text in WORDS[tool]:
        return "word"
    if text in names:
        return "name"
    if TIME.fullmatch(text):
        return "time"
    if tool == "mlflow" and text == f"{here}/mlruns/0":
        return "folder"
    if tool == "wandb" and re.fullmatch(r"[a-z0-9]{12}", text):
        return "run"  # Ids of what it says to its own process.
    inside = text.removeprefix("mlflow-artifacts:/").removesuffix("/artifacts") if tool == "mlflow" else text
    if all(DRAWN.fullmatch(part) for part in inside.split("/")):
        return "run"
    return "version" if VERSION.fullmatch(text) else None


@pytest.mark.parametrize("tool", [pytest.param(tool, marks=[pytest.mark.slow] if tool == "mlflow" else []) for tool in TOOLS])
def test_every_value_that_a_tracker_keeps_is_of_a_class_that_the_page_lists(
    tool: Tool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(PACKAGES[tool])
    keep_trackio_in(tmp_path / "places", tool, monkeypatch)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    write_outcome(run)
    config = numbers_of(RunOptions(name=PLANTED, data=PhantomData()))
    track_run(run, Tracking(tool), name="trial-3", config=config)
    figures = stage_figures(run)
    names = {f"{stage.name}/{one}" for stage in figures for one in (*stage.values, *stage.curves, "step")} | {*config}
    names |= {re.sub(r"[^\w\-. /]", "_", name) for name in names}  # As MLflow takes them.
    values = kept(tool, run, tmp_path / "places")
    classes = {(where, str(value)): class_of(tool, value, names, here) for where, value in values if value != ""}
    assert [field for field, found in classes.items() if found is None] == []
    page = (Path(__file__).parent.parent / "docs" / "tracking.md").read_text(encoding="utf-8")
    (head,) = re.findall(r"^\| kept of a run \|(.*)\|$", page, re.MULTILINE)
    column = [cell.strip() for cell in head.split("|")].index(tool)
    listed = {line[0]: line[1:] for line in (re.split(r"\s*\|\s*", row)[1:-1] for row in page.splitlines() if row[:1] == "|")}
    told = {name for name, words in CLASSES.items() if listed[words][column] == "yes"}
    assert {*classes.values()} == told


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A run with a judged round, whose folder names a patient, as a text beside the pixels of every picture does."""
    to = tmp_path / f"{PLANTED}-hans" / "run"
    write_round(to / "round-1", 6)
    images = to / "round-1" / "images"
    beside = PngInfo()
    beside.add_text("PatientName", f"Hans^{PLANTED}")
    for path in images.iterdir():
        Image.open(path).convert("RGB").save(path, pnginfo=beside)
    data = Stage("prepare", to / "data", PairOptions(), inputs={}, existing="resume")
    data.finish(counts_in=1, counts_out=1, image_root=images)
    return to


@pytest.mark.parametrize("tool", ["wandb", "tensorboard"])
def test_samples_are_shown_only_where_that_is_said_and_without_what_stands_beside_pixels(
    tool: Tool, judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(PACKAGES[tool])
    places = tmp_path / "places"
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(places))
    monkeypatch.setattr(socket, "gethostname", lambda: f"{PLANTED}-host")
    assert set(track_run(judged, Tracking(tool), name="trial-3", config={})) == {
        "data",
        "round-1/answer",
        "round-1/judge",
    }
    where = (judged / "track", places)
    found = b"".join(written(place) for place in where if place.exists())
    assert b"What is at place" not in found
    assert b"PNG" not in found
    shown = Tracking(tool, samples=True)
    assert track_run(judged, shown, name="trial-3", config={}) == ["round-1/judge/samples"]
    assert track_run(judged, shown, name="trial-3", config={}) == []
    found = b"".join(written(place) for place in where if place.exists())
    assert b"What is at place 3?" in found
    assert b": a nodule on the left 3" in found
    assert b"PNG" in found
    assert PLANTED.encode() not in found
    assert b"PatientName" not in found
    assert not (judged / "track" / "audit.jsonl").exists()


def test_samples_go_to_another_machine_by_the_rule_of_experts_alone(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StllavaError, match="would leave this machine"):
        track_run(judged, Tracking("wandb", to="https://api.wandb.ai", samples=True), name="x", config={})
    assert host_allowed("wandb", "https://api.wandb.ai", send_images=True).startswith("api.wandb.ai:")
    assert host_allowed("wandb", "http://127.0.0.1:8080", send_images=False) == ""
    tools: tuple[Tool, ...] = ("mlflow", "trackio")
    for tool in tools:
        with pytest.raises(StllavaError, match="gets figures alone"):
            track_run(judged, Tracking(tool, samples=True), name="x", config={})
    assert not (judged / "track").exists()


def test_every_picture_that_leaves_is_noted_before_it_does(judged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        id, adds = "one", True

        def log(self, stage: StageFigures) -> None:
            """Take figures."""

        def show(self, stage: str, samples: Sequence[ShownSample]) -> None:
            noted = (judged / "track" / "audit.jsonl").read_text().splitlines()
            assert [json.loads(line)["image"] for line in noted] == [sample.name for sample in samples]
            assert {json.loads(line)["host"].partition(":")[0] for line in noted} == {"api.wandb.ai"}

        def close(self) -> None:
            """Nothing to wait for."""

    monkeypatch.setattr("stllava.tracking.places.open_tracker", lambda *_, **__: Elsewhere())
    there = Tracking("wandb", to="https://api.wandb.ai", samples=True, send_images=True)
    assert "round-1/judge/samples" in track_run(judged, there, name="x", config={})


@pytest.mark.slow
def test_mlflow_has_the_curve_by_its_steps_but_for_what_is_no_number(run: Path) -> None:
    pytest.importorskip("mlflow")
    broken = Stage("dpo", run / "round-2" / "dpo", PairOptions(), inputs={}, existing="resume")
    broken.finish(counts_in=6, counts_out=6, dropped=Dropped(), curves={"loss": [(1, 0.7), (2, float("nan"))]})
    track_run(run, Tracking("mlflow"), name="trial-3", config={})
    with sqlite3.connect(run / "track" / "mlflow.db") as database:
        rows = database.execute("select step, value from metrics where key = 'round-1/dpo/loss' order by step").fetchall()
        where = "key = 'round-2/dpo/loss' or is_nan"
        last = database.execute(f"select step, value from metrics where {where}").fetchall()
    assert rows == [(1, 0.7), (2, 0.5)]
    assert last == [(1, 0.7)]


def test_a_run_says_which_tracker_without_being_another_run(tmp_path: Path, run: Path) -> None:
    plain = RunOptions(name="trial", data=PhantomData())
    tracked = RunOptions(name="trial", data=PhantomData(), track="tensorboard")
    assert plain.resume_key() == tracked.resume_key()
    assert "track" not in plain.model_dump_json()
    assert plain.model_dump_json() == RunOptions.model_validate_json(plain.model_dump_json()).model_dump_json()


def test_a_run_is_sent_by_command_too(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    main(["track", str(run), "--tool", "tensorboard"])
    assert "2 stages sent to tensorboard: round-1/" in capsys.readouterr().out
    main(["track", str(run), "--tool", "tensorboard"])
    assert "nothing new" in capsys.readouterr().out
    assert list((run / "track").iterdir())
