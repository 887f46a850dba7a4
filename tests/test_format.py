"""What another version of stllava wrote is refused by naming that version, before anything else is said of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stllava.config import PairOptions
from stllava.data.sources import PhantomData
from stllava.errors import StllavaError
from stllava.pipeline import run
from stllava.recipe import RunOptions
from stllava.records import FORMAT, content_id
from stllava.report.compare import compare_runs
from stllava.report.page import write_report
from stllava.stages.export import export
from stllava.store import MANIFEST, PLAN, Stage, output_hash, read_manifest, read_plan
from test_report import build

OLD = r"is in the form of stllava 0\.1\.0.*Use stllava 0\.1\.0 for it"


def age(folder: Path) -> None:
    """Turn all manifests, plans and outcomes under a folder into those of 0.1.0: no format, and another option's name."""
    for path in (path for name in (MANIFEST, PLAN, "outcome.json") for path in folder.rglob(name)):
        said = json.loads(path.read_bytes())
        del said["format"]
        if "margin" in said.get("config", {}):
            said["config"]["least"] = said["config"].pop("margin")
        if "digest" in said:
            said.pop("image_root")
            said["digest"] = content_id({name: value for name, value in said.items() if name != "digest"})
        path.write_text(json.dumps(said))


def begin(folder: Path, **keys: object) -> Stage:
    return Stage("pair", folder, PairOptions(), inputs={}, existing="resume", **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize("left", [(MANIFEST, PLAN), (MANIFEST,), (PLAN,)], ids=["both", "manifest", "plan"])
def test_a_stage_of_another_version_is_neither_gone_on_with_nor_read(tmp_path: Path, left: tuple[str, ...]) -> None:
    begin(tmp_path).finish(counts_in=0, counts_out=0)
    for name in {MANIFEST, PLAN} - {*left}:
        (tmp_path / name).unlink()
    age(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    uses: list[Callable[[Path], object]] = [begin]
    uses += [read_manifest, output_hash] if MANIFEST in left else []
    uses += [read_plan] if PLAN in left else []
    for use in uses:
        with pytest.raises(StllavaError, match=OLD):
            use(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_of_another_version_is_refused_by_every_command_that_reads_one(tmp_path: Path) -> None:
    made = build(tmp_path / "run", images=6, rounds=1)
    age(tmp_path / "run")
    options = json.loads((tmp_path / "run" / PLAN).read_text())["config"]
    assert options["name"] == "phantom <demo>"
    uses: tuple[Callable[[], object], ...] = (
        lambda: write_report(made.run),
        lambda: compare_runs([made.run], to=tmp_path / "tables"),
        lambda: export(made.run, to=tmp_path / "model").manifest,
        lambda: run(RunOptions(name="phantom <demo>", data=PhantomData()), to=made.run),
    )
    for use in uses:
        with pytest.raises(StllavaError, match=OLD):
            use()


def test_what_a_later_version_wrote_is_refused_as_such(tmp_path: Path) -> None:
    begin(tmp_path).finish(counts_in=0, counts_out=0)
    for path in (tmp_path / MANIFEST, tmp_path / PLAN):
        said = json.loads(path.read_bytes()) | {"format": FORMAT + 1, "weather": "fine"}
        said["digest"] = content_id({name: value for name, value in said.items() if name != "digest"})
        path.write_text(json.dumps(said))
    for use in (begin, read_manifest):
        with pytest.raises(StllavaError, match=rf"form {FORMAT + 1}, of a later stllava.*Update stllava"):
            use(tmp_path)


def test_a_manifest_whose_format_was_damaged_is_told_as_damaged(tmp_path: Path) -> None:
    begin(tmp_path).finish(counts_in=0, counts_out=0)
    path = tmp_path / MANIFEST
    whole = path.read_text()
    for damaged in (whole.replace('"format"', '"fornat"'), whole.replace(f'"format": {FORMAT}', f'"format": {FORMAT + 4}')):
        assert damaged != whole
        path.write_text(damaged)
        with pytest.raises(StllavaError, match=r"manifest\.json is damaged"):
            read_manifest(tmp_path)


def test_what_another_version_wrote_can_be_replaced_by_the_same_stage_alone(tmp_path: Path) -> None:
    begin(tmp_path).finish(counts_in=0, counts_out=0)
    age(tmp_path)
    with pytest.raises(StllavaError, match="holds the output of the stage pair"):
        Stage("ask", tmp_path, PairOptions(), inputs={}, existing="replace")
    assert Stage("pair", tmp_path, PairOptions(), inputs={}, existing="replace").manifest is None
