"""Every bench runs, on a tiny model: its figures are for another day, that it measures and records is for now."""

import dataclasses
import importlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stllava.cli import main
from stllava.config import PairOptions
from stllava.data.sources import VqaRadData
from stllava.metrics.score import values
from stllava.recipe import RunOptions
from stllava.records import Prediction
from stllava.store import Stage

BENCH = Path(__file__).resolve().parent.parent / "bench"
RESULTS = BENCH / "results"
COMMANDS = {
    "dpo": ["--model", "tiny", "--shape", "small-image", "--images", "2", "--batch", "2", "--repeats", "1"],
    "generate": ["--model", "tiny", "--images", "2", "--plain-images", "1", "--repeats", "1"],
    "limit": ["--model", "tiny", "--shape", "small-image", "--repeats", "1"],
    "scale": ["--series", "answers", "--divide", "200", "--first", "1"],
    "million": ["--questions", "40"],
    "judge": ["--calls", "40", "--comparisons", "20", "--seconds", "0.05", "--at-once", "4"],
    "expert": ["--quick", "--variants", "2"],
    "fits": ["--tiny", "--checkpoint"],
    "projector": ["--quick", "--repeats", "1", "--times", "1"],
    "efficiency": ["--quick", "--seeds", "0"],
    "real": ["--quick", "--seeds", "0", "--arms", "loop"],
    "seeing": ["--quick", "--seeds", "0", "--splits", "standard", "--seeing", "small", "--work", "WORK"],
    "why_numbers_differ": ["--quick", "--seeds", "0", "--policies", "POLICY", "--work", "WORK"],
    "readers": ["--quick", "--seeds", "0"],
    "intake": ["--kind", "jpeg2000", "--images", "20", "--resume"],
}
NEEDED = {"real": "STLLAVA_MEDVQA", "seeing": "STLLAVA_VQA_RAD", "why_numbers_differ": "STLLAVA_MEDVQA"}
"""Real data that a bench reads."""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_bench_measures_and_records_with_device_and_versions(name: str, tmp_path: Path, tiny_model: Path) -> None:
    needed = NEEDED.get(name)
    if needed is not None and not os.environ.get(needed):
        pytest.skip(f"{needed} is not set: bench/{name}.py was not tried")
    environment = os.environ | {"STLLAVA_BENCH_RESULTS": str(tmp_path)}
    places = {"WORK": tmp_path / "work", "POLICY": tiny_model}
    words = [str(places.get(word, word)) for word in COMMANDS[name]]
    done = subprocess.run(
        [sys.executable, str(BENCH / f"{name}.py"), *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = tmp_path.glob("*.json")
    result = json.loads(written.read_text())
    assert result["bench"] == name
    assert result["device"]
    assert result["versions"]["torch"]
    assert name in result["command"]


def test_a_plan_is_made_of_what_a_run_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    shared = importlib.import_module("shared.plan")
    for name, figures in (
        ("ask", {"images": 100.0}),
        ("judge", {"prompt_tokens": 2e6, "completion_tokens": 1e5}),
        ("dpo", {}),
        ("evaluate", {}),
    ):
        stage = Stage(name, tmp_path / "run" / "round-1" / name, PairOptions(), inputs={}, existing="resume")
        (stage.to / "made.bin").write_bytes(bytes(1 << 20))
        stage.finish(counts_in=1, counts_out=1, measures=figures, device="gpu")
    seconds = {"ask": 360.0, "judge": 36.0, "dpo": 720.0, "evaluate": 36.0}
    taken = shared.measured(tmp_path / "run")
    stages = [dataclasses.replace(stage, seconds=seconds[stage.name]) for stage in taken[2]]
    monkeypatch.setattr(shared, "measured", lambda _: (*taken[:2], stages))
    prices = shared.Prices(2.0, 3.0, 10.0, 0.5, 0.9)
    told = shared.plan(tmp_path / "run", [1000], prices)
    assert "100 images a round, on gpu" in told
    assert re.search(r"ask +1\.00 +2\.00", told)
    assert re.search(r"evaluate +0\.01 +0\.02", told)
    assert re.search(r"all +3\.11 +6\.22", told)
    assert "20.0 M tokens in, 1.0 M out: $70.00, by the batch API $35.00" in told
    # Asking and evaluating over 8, training over 8 at 90 %, judging as it is.
    assert f"{1 / 8 + 0.01 / 8 + 2 / 7.2 + 0.1:,.2f} h on 8" in told
    assert "Assumed:" in told


def test_the_tables_of_results_are_those_of_the_stored_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    table = importlib.import_module("table")
    page = (BENCH.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert table.written(page) == page, "python bench/table.py --write"
    printed = {path.name.split("-")[0] for path in RESULTS.glob("*.json")} - {"vqa"}
    assert printed == {one.__name__ for one in table.TABLES}


def test_make_bench_makes_every_stored_result() -> None:
    """The bench, and of a bench with several loads the one that the result is of; `make mini` has a target of its own."""
    recipe = (BENCH.parent / "Makefile").read_text().partition("\nbench:")[2]
    results = {path.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    assert results.pop("vqa-rad-mini-cpu.json")["bench"] == "vqa_rad_mini"
    made = [line.split() for line in recipe.splitlines() if "bench/" in line]
    for name, result in results.items():
        words = result["command"].split()
        loads = [words[i : i + 2] for i, word in enumerate(words) if word in ("--shape", "--load", "--kind")]
        wanted = [words[1], *(load for pair in loads for load in pair), *(["--whole"] if "--whole" in words else [])]
        assert any({*wanted} <= {*line} for line in made), f"{name}: {' '.join(wanted)}"


@pytest.mark.parametrize("split", ["standard", "image-disjoint"])
def test_the_real_run_compares_the_loop_with_all_labels_on_the_same_validation(
    split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setenv("STLLAVA_VQA_RAD", "/somewhere/vqa_rad")
    monkeypatch.setenv("STLLAVA_WEIGHTS", "/somewhere/weights")
    mini = importlib.import_module("vqa_rad_mini")
    asked: list[RunOptions] = []
    monkeypatch.setattr("stllava.commands.running.start", lambda options, **_: asked.append(options))
    for arm in mini.ARMS:
        words = mini.command_of(split, arm, 1, to=Path("run"), quick=False)
        main(words[words.index("run") :])
    loop, every = asked
    assert isinstance(loop.data, VqaRadData)
    assert isinstance(every.data, VqaRadData)
    assert every.data == loop.data.model_copy(update={"labelled": "all"})
    assert (loop.seed, loop.data.split, loop.rounds > 0, every.rounds) == (1, split, True, 0)
    assert every.evaluate == loop.evaluate


def test_a_table_made_of_tallies_is_the_table_of_every_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scores, paired differences and intervals are the same of counts by image as of answers one by one."""
    monkeypatch.syspath_prepend(str(BENCH))
    tallies, seeds = importlib.import_module("shared.tallies"), importlib.import_module("shared.seeds")
    draw = random.Random(0)
    told = {
        policy: [
            Prediction(
                id=f"{policy} {n}",
                sample_id=f"{n}",
                image=f"image-{n % 13}.png",
                question="Where is it?",
                targets=("left lung",),
                kind="open",
                completion="left lung" if draw.random() < share else "right lung",
                policy=policy,
                labels={"question": f"kind {n % 3}"},
            )
            for n in range(60)
        ]
        for policy, share in (("best", 0.7), ("start", 0.4))
    }
    tallies.write_tally(tmp_path / "loop-0.json", tallies.tally(told, ["open_exact_match"], seconds=1.0, commit="abc"))
    kept = tallies.read_tally(tmp_path / "loop-0.json")
    rows = {policy: values(answers, "open_exact_match") for policy, answers in told.items()}
    images = [answer.image for answer in told["best"]]
    counted = {policy: tallies.each_answer(kept, policy, "open_exact_match") for policy in told}
    for policy in told:
        ours, theirs = ([counted[policy][0]], [counted[policy][1]]), ([rows[policy]], [images])
        assert seeds.over_seeds(*ours) == pytest.approx(seeds.over_seeds(*theirs))
    paired = seeds.gap_over_seeds([counted["best"][0]], [counted["start"][0]], [counted["best"][1]])
    assert paired == pytest.approx(seeds.gap_over_seeds([rows["best"]], [rows["start"]], [images]))
    kinds = tallies.kinds_over_seeds([kept], "start")
    for kind in ("kind 0", "kind 1", "kind 2"):
        of_kind = [
            value for value, answer in zip(rows["start"], told["start"], strict=True) if answer.labels["question"] == kind
        ]
        assert kinds[kind] == {"open_exact_match": pytest.approx(100 * sum(of_kind) / len(of_kind))}
    with pytest.raises(ValueError, match="start answered other questions"):
        tallies.tally({"best": told["best"], "start": told["start"][1:]}, ["open_exact_match"], seconds=1.0, commit="abc")
