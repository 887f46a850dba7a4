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
from stllava.cli import main
from stllava.config import JudgeOptions, PairOptions
from stllava.data.sources import PhantomData
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.recipe import RunOptions
from stllava.records import Difference, Outcome, Score
from stllava.rundir import RunDir
from stllava.store import Stage, write_whole
from stllava.tracking import Tracking, numbers_of, stage_figures, track_run
from stllava.tracking.figures import StageFigures
from stllava.tracking.places import Tool
from stllava.tracking.samples import ShownSample, host_allowed

PLANTED = "mueller"
pytestmark = pytest.mark.filterwarnings("ignore")  # The trackers' own, of what they import.
TOOLS: tuple[Tool, ...] = get_args(Tool)
PACKAGES = {"trackio": "trackio", "wandb": "wandb", "tensorboard": "tensorboard", "mlflow": "mlflow"}


def score(policy: str) -> Score:
    return Score(policy=policy, benchmark="test", metric="closed_accuracy", value=0.5, low=0.25, high=0.75, n=4)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in a folder, with records, causes and options, that name a patient."""
    to = tmp_path / f"{PLANTED}-hans" / "run"
    options = RunOptions(name="trial", data=PhantomData(), seed=3)
    plan = Stage("run", to, options, inputs={"images": f"/data/{PLANTED}"}, existing="resume")
    plan.write_plan()
    judge = Stage("judge", to / "round-1" / "judge", JudgeOptions(), inputs={PLANTED: PLANTED}, existing="resume")
    write_whole(judge.to / "judgments.jsonl", json.dumps({"image": f"{PLANTED}.png", "question": PLANTED}) + "\n")
    dropped = Dropped({"unread reply": 2, f"Hans^{PLANTED}": 1})
    judge.finish(
        counts_in=9, counts_out=6, dropped=dropped, measures={"verdicts": 6, "cost": 0.25}, notes=[f"{PLANTED} was here"]
    )
    dpo = Stage("dpo", to / "round-1" / "dpo", JudgeOptions(), inputs={}, existing="resume")
    dpo.finish(counts_in=6, counts_out=6, dropped=Dropped(), curves={"loss": [(1, 0.7), (2, 0.5)]})
    return to


def outcome(run: Path) -> None:
    gain = Difference(
        policy="round-1", against="sft", benchmark="test", metric="closed_accuracy", value=0.1, low=0.0, high=0.2, n=4
    )
    made = Outcome(
        name="trial",
        policies=("sft", "round-1"),
        baselines=(),
        best="round-1",
        sentences=(PLANTED,),
        notes=(PLANTED,),
        scores=(score("sft"), score("round-1")),
        differences=(gain,),
        overlaps=(),
    )
    write_whole(RunDir(run).outcome, made.model_dump_json())


def test_what_is_sent_are_counts_causes_curves_and_scores(run: Path) -> None:
    outcome(run)
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
    if tool == "trackio":
        import trackio

        monkeypatch.setattr(trackio, "TRACKIO_DIR", places)
        monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", places)
    assert set(track_run(run, tracking, name="trial-3", config=config)) == {"round-1/judge", "round-1/dpo"}
    outcome(run)
    assert track_run(run, tracking, name="trial-3", config=config) == ["run"]
    assert track_run(run, tracking, name="trial-3", config=config) == []
    kept = b"".join(written(place) for place in (run / "track", places) if place.exists())
    # Where artifacts of MLflow's Default experiment would lie, in a database on this machine; a server has its own.
    kept = kept.replace(f"{here}/mlruns/0".encode(), b"") if tool == "mlflow" else kept
    assert b"left out/unread reply" in kept
    assert b"closed_accuracy" in kept
    found = [kept[max(0, at.start() - 60) : at.end() + 60] for at in re.finditer(PLANTED.encode(), kept, re.IGNORECASE)]
    assert found == []
    assert b"Hans" not in kept
    with pytest.raises(StllavaError, match="is tracked by"):
        track_run(run, Tracking("tensorboard" if tool != "tensorboard" else "wandb"), name="x", config={})


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
    kept = b"".join(written(place) for place in where if place.exists())
    assert b"What is at place" not in kept
    assert b"PNG" not in kept
    shown = Tracking(tool, samples=True)
    assert track_run(judged, shown, name="trial-3", config={}) == ["round-1/judge/samples"]
    assert track_run(judged, shown, name="trial-3", config={}) == []
    kept = b"".join(written(place) for place in where if place.exists())
    assert b"What is at place 3?" in kept
    assert b": a nodule on the left 3" in kept
    assert b"PNG" in kept
    assert PLANTED.encode() not in kept
    assert b"PatientName" not in kept
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
        id = "one"

        def log(self, stage: StageFigures) -> None:
            """Take figures."""

        def show(self, stage: str, samples: Sequence[ShownSample]) -> None:
            noted = (judged / "track" / "audit.jsonl").read_text().splitlines()
            assert [json.loads(line)["image"] for line in noted] == [sample.name for sample in samples]
            assert {json.loads(line)["host"].partition(":")[0] for line in noted} == {"api.wandb.ai"}

        def close(self) -> None:
            """Nothing to wait for."""

    monkeypatch.setattr("stllava.tracking.places._open", lambda *_, **__: Elsewhere())
    there = Tracking("wandb", to="https://api.wandb.ai", samples=True, send_images=True)
    assert "round-1/judge/samples" in track_run(judged, there, name="x", config={})


@pytest.mark.slow
def test_mlflow_has_the_curve_by_its_steps(run: Path) -> None:
    pytest.importorskip("mlflow")
    track_run(run, Tracking("mlflow"), name="trial-3", config={})
    with sqlite3.connect(run / "track" / "mlflow.db") as database:
        rows = database.execute("select step, value from metrics where key = 'round-1/dpo/loss' order by step").fetchall()
    assert rows == [(1, 0.7), (2, 0.5)]


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
