"""A run at work, watched from its files alone: what the page says is what the manifests say."""

import fcntl
import multiprocessing
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from helpers.pages import SIZES, browsing, picture, serving
from stllava.commands.running import status
from stllava.config import JudgeOptions
from stllava.errors import StllavaError
from stllava.pipeline import run
from stllava.recipe import RunOptions
from stllava.records import Manifest
from stllava.review import watch
from stllava.review.image_store import image_id
from stllava.review.security import Door
from stllava.review.watch import RunReader, StageView, cost_of, warnings_of
from stllava.review.watch_page import watch_app
from stllava.store import CURVES, LOCK, OUTLOOK, PARTS, SHARD, SHARDS, CurvePoint, Outlook, Stage, read_manifest, remove_folder
from test_report import EVIL, build
from test_run import TAUGHT
from test_run import options as tiny

HOST = "127.0.0.1:8766"


@contextmanager
def page_of(folder: Path) -> Iterator[TestClient]:
    """The page of a run, opened."""
    door = Door(frozenset({HOST}), "stllava-8766")
    with TestClient(watch_app(RunReader(folder), door), base_url=f"http://{HOST}") as client:
        assert client.get("/").status_code == 401
        client.get(door.invite("watch"), follow_redirects=False)
        yield client


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[Path]:
    """A run in its second round: the answers half given, the training before it at its sixth step of ten."""
    folder = tmp_path / "run"
    build(folder, images=12, rounds=2)
    for name in ("outcome.json", "round-2/judge", "round-2/pair", "round-2/answer", "round-2/dpo"):
        path = folder / name
        remove_folder(path) if path.is_dir() else path.unlink()
    answer, dpo = folder / "round-2" / "answer", folder / "round-2" / "dpo"
    for stage in (answer, dpo):
        Stage(stage.name, stage, JudgeOptions(), inputs={}, existing="resume")
        (stage / PARTS).mkdir()
        (stage / LOCK).touch()
    (answer / PARTS / OUTLOOK).write_text(Outlook(unit="questions", items=25, chunk=10).model_dump_json())
    (answer / PARTS / "a.jsonl").write_text("{}\n")
    points = [CurvePoint(at=100.0 + step, step=step, steps=10, values={"loss": 1 / step}) for step in (1, 2, 3, 2, 4, 5, 6)]
    (dpo / PARTS / CURVES).write_text("".join(point.model_dump_json() + "\n" for point in points) + '{"at": 1')
    with (answer / LOCK).open("ab") as file, (dpo / LOCK).open("ab") as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(other, fcntl.LOCK_EX)
        yield folder


def test_stages_at_work_say_how_far_they_are(at_work: Path) -> None:
    stages = {stage.name: stage for stage in RunReader(at_work).read().stages}
    answer, dpo = stages["round-2/answer"], stages["round-2/dpo"]
    assert (answer.status, answer.done, answer.items, answer.unit) == ("at work", 10, 25, "questions")
    assert (dpo.done, dpo.items, dpo.rate, dpo.seconds_left) == (6, 10, 1.0, 4.0)
    assert [step for step, _ in dpo.curves["loss"]] == [1, 2, 3, 4, 5, 6]
    assert stages["round-1/dpo"].status == "done"
    with page_of(at_work) as client:
        page = client.get("/").text
    assert "At work on round-2/dpo." in page
    assert "10 of 25 questions" in page


def test_a_run_that_nobody_works_on_is_said_to_have_stopped(at_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "locked_inodes", lambda: frozenset({1}))
    view = RunReader(at_work).read()
    assert (view.at_work, view.current and view.current.status) == (False, "stopped")
    with page_of(at_work) as client:
        assert "No process is at work: the run stopped in round-2/dpo." in client.get("/").text


def test_watching_locks_nothing_and_writes_nothing(at_work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in at_work.rglob("*")}
    for _ in range(3):
        RunReader(at_work).read()
    assert {path: path.stat().st_mtime_ns for path in at_work.rglob("*")} == before


def test_a_finished_run_shows_scores_answers_and_costs_and_runs_no_script_of_a_model(tmp_path: Path) -> None:
    build(tmp_path / "run", images=12, rounds=2)
    with page_of(tmp_path / "run") as client:
        reply = client.get("/")
        page = reply.text
        assert "script-src 'self'" in reply.headers["content-security-policy"]
        assert EVIL not in page
        assert "<script>" not in page
        image = "test/011.png"
        assert f"/image/{image_id(image)}" in page
        assert client.get(f"/image/{image_id(image)}").headers["content-type"] == "image/png"
        assert client.get(f"/image/{image_id('test/000.png')}").status_code == 404
        assert client.get("/image/..%2f..%2fplan.json").status_code == 404
    view = RunReader(tmp_path / "run").read()
    assert len(view.newest) == 6
    assert cost_of(view.stages)[0][0] == "round-1/judge"


def test_what_speaks_against_a_run_is_said_early() -> None:
    def stage(measures: dict[str, float], *, dropped: dict[str, int] | None = None) -> StageView:
        manifest = Manifest(
            stage="x", config={}, inputs={}, outputs={}, counts_in=100, counts_out=1, dropped=dropped or {}, measures=measures,
            versions={}, commit="", started="", seconds=1, device="cpu",
        )  # fmt: skip
        return StageView("round-1/x", "x", "done", 0.0, manifest)

    falling = StageView("round-1/dpo", "dpo", "at work", 0.0, curves={"chosen_logp": ((1.0, -2.0), (2.0, -9.0))})
    audited = stage({"wrong": 0.14, "wrong_n": 400.0})
    told = list(
        warnings_of([audited, stage({"flip_share": 0.4, "tie_share": 0.9}), stage({}, dropped={"repeated": 60}), falling])
    )
    said = ("wrong about 14%", "40%", "90%", "60%", "fell from -2 to -9")
    assert [part in one for part, one in zip(said, told, strict=True)] == [True] * 5
    assert list(warnings_of([stage({"flip_share": 0.1})])) == []


def test_the_shards_of_a_stage_are_told_with_those_that_have_not_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shard(number: int, count: int = 3) -> Stage:
        folder = tmp_path / SHARDS / f"{number}-of-{count}"
        return Stage("answer", folder, JudgeOptions(), inputs={SHARD: f"{number}/{count}"}, existing="resume")

    shard(3).finish(counts_in=5, counts_out=4)
    begun = shard(1).to / PARTS
    begun.mkdir(exist_ok=True)
    (begun / OUTLOOK).write_text(Outlook(unit="questions", items=25, chunk=10).model_dump_json())
    (begun / "a.jsonl").write_text("{}\n")
    status(tmp_path)
    told = capsys.readouterr().out
    assert re.search(r"1/3 +stopped +10 of 25 questions", told)
    assert re.search(r"3/3 +done +5 in, 4 out", told)
    assert "1 of 3 shards" in told
    assert "Not begun: 2/3" in told
    for number in (1, 2):
        shard(number).finish(counts_in=5, counts_out=5)
    status(tmp_path)
    assert f"are done: stllava gather {tmp_path}" in capsys.readouterr().out
    shutil.copytree(tmp_path / SHARDS / "2-of-3", tmp_path / SHARDS / "copy")
    status(tmp_path)
    told = capsys.readouterr().out
    assert "3 of 3 shards" in told
    assert "There twice, where gather takes one: 2/3" in told


def test_a_folder_among_shards_that_is_none_is_named(tmp_path: Path) -> None:
    Stage("answer", tmp_path / SHARDS / "whole", JudgeOptions(), inputs={}, existing="resume")
    with pytest.raises(StllavaError, match="whole is no shard, but the whole of a stage"):
        status(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StllavaError, match="has no plan"):
        RunReader(tmp_path)


@pytest.mark.parametrize("part", ["sft", "data", "round-1/ask"])
def test_the_folder_of_a_stage_is_no_run(at_work: Path, part: str) -> None:
    with pytest.raises(StllavaError, match="and no run"):
        RunReader(at_work / part)


def test_a_run_that_goes_away_or_is_damaged_while_it_is_watched_is_told(at_work: Path) -> None:
    """MLflow and Aim answer 500 to runs that were deleted or are half written (mlflow pull request 9057, aim issue 1269)."""
    with page_of(at_work) as client:
        for name in ("sft/manifest.json", "plan.json"):
            whole = (at_work / name).read_bytes()
            (at_work / name).write_bytes(b"" if name.startswith("sft") else whole[:40])
            told = client.get("/")
            expected = (503, True) if name.startswith("sft") else (200, False)
            assert (told.status_code, "manifest.json is damaged" in told.text) == expected
            (at_work / name).write_bytes(whole)
        assert client.get("/").status_code == 200
        moved = at_work.rename(at_work.with_name("elsewhere"))
        told = client.get("/")
        assert (told.status_code, "no longer the folder of a run" in told.text) == (503, True)
        moved.rename(at_work)
        assert client.get("/").status_code == 200


def work(chosen: RunOptions, folder: Path) -> None:
    """The run, in a process of its own."""
    run(chosen, to=folder)


@pytest.mark.slow
def test_what_was_seen_of_a_run_at_work_agrees_with_its_manifests(tmp_path: Path) -> None:
    folder, seen = tmp_path / "run", defaultdict[str, list[StageView]](list)
    # Of so many images that every stage takes longer than one look, on a busy machine too.
    drawn = {"kind": "phantom", "labelled": 12, "unlabelled": 80, "validation": 3, "test": 3, "size": 64}
    options = tiny(baselines=False, sft=TAUGHT | {"epochs": 10}, data=drawn)
    process = multiprocessing.get_context("spawn").Process(target=work, args=(options, folder))
    process.start()
    while not (folder / "plan.json").is_file():
        time.sleep(0.05)
    reader = RunReader(folder)
    while process.is_alive():
        view = reader.read()
        for stage in view.stages:
            seen[stage.name].append(stage)
        time.sleep(0.05)
    assert process.exitcode == 0
    last = reader.read()
    assert (last.at_work, last.current) == (False, None)
    watched = {name for name, views in seen.items() if any(one.status == "at work" for one in views)}
    assert {"sft", "round-1/ask", "round-1/answer", "round-1/dpo"} <= watched
    for name, views in seen.items():
        manifest = read_manifest(folder / name)
        assert not any(one.status == "stopped" for one in views), name
        going = [one for one in views if one.status == "at work"]
        assert [one.done for one in going] == sorted(one.done for one in going)
        for one in going:
            for curve, points in one.curves.items():
                assert list(points) == manifest.curves[curve][: len(points)]
            if one.items and one.unit != "steps" and manifest.stage in ("answer", "evaluate"):
                assert one.items == manifest.counts_in


@pytest.mark.slow
def test_the_page_of_a_run_fits_every_screen_and_renews_itself(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    build(folder, images=12, rounds=2)
    with serving(["watch", str(folder), "--port", "0"]) as (_, addresses), browsing() as browser:
        page, errors = browser.new_page(), list[str]()
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.goto(addresses[0])
        page.locator("table.stages tr").first.wait_for()
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                picture(page, f"watch-{size}-{scheme}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert errors == []
        (folder / "outcome.json").unlink()
        page.locator(".pill", has_text="stopped").wait_for(timeout=15_000)
