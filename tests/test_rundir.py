"""The layout of a run on disk stands once."""

import ast
from pathlib import Path

import pytest

import stllava
from stllava.config import Options
from stllava.data.prepare import prepare
from stllava.data.sources import PhantomData
from stllava.errors import StllavaError
from stllava.rundir import BLIND, FINAL, SFT, RunDir, round_name
from stllava.store import Stage

SOURCE = Path(stllava.__file__).parent
FILES = ("outcome.json", "summary.json", "report.html")
FOLDERS = {
    "data",
    "model",
    "align",
    "sft",
    "ask",
    "answer",
    "judge",
    "pair",
    "dpo",
    "describe",
    "evaluate",
    "final",
    "judge-check",
}


def test_every_policy_and_result_of_a_run_has_its_place() -> None:
    run = RunDir(Path("run"))
    assert run.policy(SFT) == Path("run/sft")
    assert run.policy(round_name(2)) == run.stage("round-2", "dpo") == Path("run/round-2/dpo")
    assert run.policy(FINAL) == Path("run/final/sft")
    assert run.final_data == Path("run/final/data")
    assert run.description_stage("round-1", "judge") == Path("run/round-1/describe/judge")
    assert run.evaluation(BLIND + SFT, "slake") == Path("run/evaluate/blind-sft/slake")
    assert run.name_of(run.stage("round-1", "ask")) == "round-1/ask"


def spelt(tree: ast.AST) -> list[str]:
    """Paths of a run that a module writes out: its files' names, rounds' names, and folders joined to a path."""
    inside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in inside and node.value in (*FILES, "round-"):
            found.append(str(node.value))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            found += [str(node.right.value)] if str(node.right.value).split("/")[0] in FOLDERS else []
    return found


def test_no_path_of_a_run_is_written_out_elsewhere() -> None:
    modules = [path for path in SOURCE.rglob("*.py") if path.name != "rundir.py"]
    assert len(modules) > 100
    assert {path.name: found for path in modules if (found := spelt(ast.parse(path.read_text(encoding="utf-8"))))} == {}


@pytest.mark.parametrize(
    "line", ['run / "evaluate" / name', 'run / "outcome.json"', 'f"round-{number}"', 'run / "data/images"']
)
def test_a_path_that_is_written_out_is_found(line: str) -> None:
    assert spelt(ast.parse(line))
    assert not spelt(ast.parse(f"'''{line}'''"))


def test_the_image_root_of_a_run_is_what_its_data_stage_noted_and_moves_with_the_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    data = prepare(PhantomData(labelled=4, unlabelled=4, validation=4, test=4), seed=0, to=run.data)
    assert run.image_root == data.image_root
    moved = RunDir(run.path.rename(tmp_path / "moved"))
    assert moved.image_root == moved.data / "images"
    assert moved.image_root.is_dir()


def test_an_image_root_that_was_moved_is_noted_when_the_data_is_read_again(tmp_path: Path) -> None:
    stage = Stage("data", tmp_path / "data", Options(), inputs={}, existing="resume")
    stage.finish(counts_in=0, counts_out=0, image_root=tmp_path / "before")
    assert RunDir(tmp_path).image_root == tmp_path / "before"
    again = Stage("data", tmp_path / "data", Options(), inputs={}, existing="resume")
    again.move_image_root(tmp_path / "after")
    assert RunDir(tmp_path).image_root == tmp_path / "after"
    assert Stage("data", tmp_path / "data", Options(), inputs={}, existing="resume").manifest is not None


def test_a_manifest_without_an_image_root_is_refused(tmp_path: Path) -> None:
    Stage("data", tmp_path / "data", Options(), inputs={}, existing="resume").finish(counts_in=0, counts_out=0)
    with pytest.raises(StllavaError, match="names no image root"):
        _ = RunDir(tmp_path).image_root
