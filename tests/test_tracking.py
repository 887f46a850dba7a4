"""Trackers get numbers under our own names: no path, no text, no image, nothing of the machine or its user."""

import json
import re
import socket
import sqlite3
import sys
from pathlib import Path
from typing import get_args

import pytest

from stllava.cli import main
from stllava.config import JudgeOptions
from stllava.data.sources import PhantomData
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.recipe import RunOptions
from stllava.records import Difference, Outcome, Score
from stllava.rundir import RunDir
from stllava.store import Stage, write_whole
from stllava.tracking import Tracking, numbers_of, stage_figures, track_run
from stllava.tracking.places import Tool

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
