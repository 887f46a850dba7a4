"""How much is told of long work, in which form, and how far a run is."""

import json
import logging
from pathlib import Path

import pytest

from stllava.cli import main, take_settings
from stllava.config import JudgeOptions
from stllava.data.sources import PhantomData
from stllava.dropped import Dropped
from stllava.progress import LOG_FORM, LOUDNESS, Progress
from stllava.recipe import RunOptions
from stllava.store import Stage, locked


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test puts into the environment is gone behind it."""
    for name in (LOG_FORM, LOUDNESS):
        monkeypatch.setenv(name, "")


def test_what_stands_before_a_command_says_how_it_is_told() -> None:
    assert take_settings(["--quiet", "--log", "json", "run", "--log", "x"]) == ["run", "--log", "x"]
    assert take_settings(["--verbose", "demo"]) == ["demo"]
    assert take_settings(["--log=json", "demo"]) == ["demo"]
    assert take_settings(["--version"]) == ["--version"]
    assert take_settings(["--log", "xml", "demo"]) == ["--log", "xml", "demo"]


def test_progress_in_json_is_a_line_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(LOG_FORM, "json")
    with Progress("answer", 4, unit="questions") as progress:
        progress.advance(4, extra="fine")
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["event"], told["stage"], told["done"], told["total"], told["told"]) == ("progress", "answer", 4, 4, "fine")


def test_quiet_work_tells_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(LOUDNESS, "quiet")
    with Progress("answer", 1, unit="questions") as progress:
        progress.advance()
    assert capsys.readouterr().err == ""


def test_an_error_is_a_line_of_json_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as left:
        main(["--log", "json", "run", "gone.yaml"])
    told = json.loads(capsys.readouterr().err)
    assert (left.value.code, told["event"]) == (2, "error")
    assert "no recipe gone.yaml" in told["message"]


def test_status_tells_done_working_and_stopped_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    plan = Stage("run", run, RunOptions(name="trial", data=PhantomData()), inputs={}, existing="resume")
    plan.write_plan()
    done = Stage("judge", run / "round-1" / "judge", JudgeOptions(), inputs={}, existing="resume")
    done.finish(counts_in=5, counts_out=4, dropped=Dropped({"unparsed": 1}))
    begun = Stage("pair", run / "round-1" / "pair", JudgeOptions(), inputs={}, existing="resume")
    begun.write_plan()
    main(["status", str(run)])
    said = capsys.readouterr().out
    assert "5 in, 4 out" in said
    assert "round-1/pair   stopped" in said
    assert f"{run} is stopped. The command that began it goes on where it was." in said
    with locked(run / "round-1" / "pair"):
        main(["status", str(run)])
    said = capsys.readouterr().out
    assert "round-1/pair   at work" in said
    assert f"{run} is at work." in said


def test_status_of_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["status", str(tmp_path)])
    assert "has no plan.json" in capsys.readouterr().err
