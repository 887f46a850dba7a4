"""Trackers as they are by themselves: what they would ask others for, mix up, lose or stop a run with."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import get_args

import pytest

from helpers.tracked import PACKAGES, in_wandb, keep_trackio_in, write_run
from stllava.data.sources import PhantomData
from stllava.errors import StllavaError
from stllava.pipeline import Loop
from stllava.recipe import RunOptions
from stllava.remote.identities import identity_in
from stllava.rundir import RunDir
from stllava.tracking import TrackerError, Tracking, track_run
from stllava.tracking.trackers import Tool

pytestmark = pytest.mark.filterwarnings("ignore")  # The trackers' own, of what they import.
TOOLS: tuple[Tool, ...] = get_args(Tool)
SLOW: dict[Tool, list[pytest.MarkDecorator]] = {"mlflow": [pytest.mark.slow]}
IN_TESTS = ("PYTEST_", "CI", "GITHUB_", "GITLAB_", "DO_NOT_TRACK", "MLFLOW_", "WANDB_", "TRACKIO_", "HF_", "GRADIO_")
"""Beginnings of variables of which a tool makes out that it is being tested, and keeps still, or which tests set."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A proxy that lets nothing through, and whom it was asked for."""
    seen: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def refuse(self) -> None:
            seen.append(self.path)
            self.send_error(403)

        do_CONNECT = do_GET = do_POST = do_HEAD = refuse  # noqa: N815 - the names that http.server calls

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_a_tracker_that_stays_here_asks_no_other_machine_for_anything(
    tool: Tool, run: Path, tmp_path: Path, asked: tuple[str, list[str]]
) -> None:
    """Even of a user who has a key of the hub, and in a shell from which other work goes to a Space."""
    pytest.importorskip(PACKAGES[tool])
    proxy, seen = asked
    environment = {name: value for name, value in os.environ.items() if not name.startswith(IN_TESTS)}
    environment |= {"HOME": str(tmp_path), "HF_TOKEN": "hf_of_a_test", "TRACKIO_SPACE_ID": "me/mine"}
    environment |= {f"{kind}_PROXY": proxy for kind in ("HTTP", "HTTPS")} | {"NO_PROXY": "localhost,127.0.0.1"}
    words = [sys.executable, "-m", "stllava", "track", str(run), "--tool", tool]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"2 stages sent to {tool}" in done.stdout
    assert seen == []


@pytest.mark.parametrize("tool", ["trackio", "tensorboard"])
def test_two_runs_of_one_recipe_are_two_runs_there(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(PACKAGES[tool])
    keep_trackio_in(tmp_path / "place", tool, monkeypatch)
    to = str(tmp_path / "place") if tool == "tensorboard" else ""
    runs = [write_run(tmp_path / name) for name in ("beta-1", "beta-2")]
    for run in runs:
        track_run(run, Tracking(tool, to=to), name="phantom-0", config={})
    ids = [json.loads((run / "track.json").read_text())["id"] for run in runs]
    assert len({*ids}) == 2
    assert all(one.startswith("phantom-0-") for one in ids)
    if tool == "tensorboard":
        assert sorted(path.name for path in (tmp_path / "place").iterdir()) == sorted(ids)


def test_what_wandb_keeps_here_is_one_folder_that_has_all_of_a_run(tmp_path: Path) -> None:
    """Of several folders of one id `wandb sync` lets the last one stand alone: wandb/wandb#3841."""
    pytest.importorskip("wandb")
    run = write_run(tmp_path / "run", stages=("judge",))
    assert track_run(run, Tracking("wandb"), name="trial", config={}) == ["round-1/judge"]
    write_run(run, stages=("dpo",))
    assert track_run(run, Tracking("wandb"), name="trial", config={}) == ["round-1/dpo"]
    (folder,) = (run / "track" / "wandb").glob("offline-run-*")
    assert {"round-1/judge/cost", "round-1/dpo/loss"} <= {value for _, value in in_wandb(folder)}


def test_a_notebooks_own_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    own = wandb.init(mode="offline", dir=str(tmp_path))
    track_run(write_run(tmp_path / "run"), Tracking("wandb"), name="trial", config={})
    own.log({"mine": 1})
    assert "round-1/judge/cost" not in dict(own.summary)
    own.finish()


def test_a_tracker_that_does_not_answer_stops_no_run(
    run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "0" if name.endswith("RETRIES") else "2")
    nobody = "http://127.0.0.1:9"
    with pytest.raises(TrackerError, match=rf"stllava track {run} --tool mlflow --to {nobody}` sends what is missing"):
        track_run(run, Tracking("mlflow", to=nobody), name="trial", config={})
    Loop(RunOptions(name="trial", data=PhantomData(), track="mlflow", track_to=nobody), RunDir(run)).track()
    assert "mlflow did not take the figures" in caplog.text


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    options = RunOptions(name="trial", data=PhantomData(), track="trackio")
    with pytest.raises(StllavaError, match="trackio is not installed"):
        Loop(options, RunDir(tmp_path / "run")).turn()
    assert not (tmp_path / "run").exists()


def test_a_user_without_a_name_has_none_that_could_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker run --user 4711`: a number that the image knows no name for."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr("socket.gethostname", lambda: "scanner-7")
    assert identity_in("nothing") is None
    assert identity_in("made on scanner-7.") == "scanner-7"
