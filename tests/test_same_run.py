"""The script that says whether a change of the code changed a run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from test_report import build

SCRIPT = Path(__file__).resolve().parent.parent / "bench" / "same_run.py"


def compare(before: Path, after: Path) -> tuple[int, dict[str, str]]:
    """The script's exit status and what it says of each comparison."""
    done = subprocess.run([sys.executable, str(SCRIPT), str(before), str(after)], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, {line.split()[0]: line.partition(" ")[2].strip() for line in done.stdout.splitlines()[:-1]}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A run, and the same as an earlier version left it: other folders, other options, no format."""
    build(tmp_path / "now", images=6, rounds=1)
    (tmp_path / "now" / "final").mkdir()
    shutil.copytree(tmp_path / "now" / "data", tmp_path / "now" / "final" / "data")
    shutil.copytree(tmp_path / "now", tmp_path / "before")
    (tmp_path / "before" / "final" / "data").rename(tmp_path / "before" / "final" / "consolidate")
    plan = tmp_path / "before" / "plan.json"
    said = json.loads(plan.read_text())
    said["config"]["answer"]["k"] = said["config"]["answer"].pop("num_answers")
    del said["format"], said["config"]["pair"]["max_similarity"]
    plan.write_text(json.dumps(said))
    return tmp_path / "before", tmp_path / "now"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def cut(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def test_a_run_is_the_same_under_the_names_of_today(runs: tuple[Path, Path]) -> None:
    status, found = compare(*runs)
    assert status == 0
    assert {"options", "outcome", "final/data", "round-1/pair/preferences.jsonl"} <= found.keys()
    assert all(words.endswith("the same") for words in found.values())


PLANTED: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "an answer": (
        lambda run: edit(run / "round-1/answer/answers.jsonl", '"completions":["', '"completions":["Not '),
        "round-1/answer/answers.jsonl",
        "line 1: completions",
    ),
    "a verdict": (
        lambda run: edit(run / "round-1/judge/judgments.jsonl", '"scores":[', '"scores":[0.123,'),
        "round-1/judge/judgments.jsonl",
        "line ",
    ),
    "a lost pair": (
        lambda run: cut(run / "round-1/pair/preferences.jsonl"),
        "round-1/pair/preferences.jsonl",
        "",
    ),
    "a score": (lambda run: edit(run / "outcome.json", '"value": 0.', '"value": 0.9'), "outcome", "line 1: "),
    "an option": (lambda run: edit(run / "plan.json", '"seed": 7', '"seed": 8'), "options", "seed was 7, now 8"),
    "a count": (lambda run: edit(run / "sft/manifest.json", '"counts_in": 100', '"counts_in": 99'), "sft", "counts_in was 100"),
    "a stage": (lambda run: shutil.rmtree(run / "final/data"), "final/data", "only before"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_difference_is_found_and_named(name: str, runs: tuple[Path, Path]) -> None:
    plant, where, words = PLANTED[name]
    plant(runs[1])
    status, found = compare(*runs)
    assert status == 1
    assert [place for place, said in found.items() if not said.endswith("the same")] == [where]
    assert words in found[where]
