"""A stage cut into shards: gathered, it is what it would have been whole; a shard that does not fit is named."""

import json
import multiprocessing
import os
import random
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Literal
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image as Picture
from pydantic import JsonValue

from helpers.intake_parts import FAST, import_folder
from helpers.judging import many_answers, write_answers
from stllava.config import AnswerOptions, AskOptions, EvaluateOptions, IntakeOptions, JudgeOptions, SamplingOptions
from stllava.config.experts import ItselfOptions, ScriptedOptions
from stllava.errors import ConflictError, StllavaError
from stllava.gathering import gather
from stllava.intake.convert import default_toolbox
from stllava.intake.deidentify.pseudonyms import open_salt
from stllava.intake.run import SharedLists, import_images, private_lists, take_private_lists
from stllava.records import Manifest, Question, Sampling
from stllava.stages.answer import answer
from stllava.stages.ask import ask
from stllava.stages.evaluate import evaluate
from stllava.stages.judge import judge
from stllava.stages.predict import predict
from stllava.stages.results import StageResult
from stllava.store import SHARDS, Shard, Stage, read_manifest

SHORT = SamplingOptions(temperature=1.2, top_k=0, top_p=1.0, max_new_tokens=6)
GREEDY = SamplingOptions(temperature=0, max_new_tokens=6)
PANEL = JudgeOptions(expert="scripted", scripted=ScriptedOptions(prefer=("nodule", "mass")), chunk=3)
QUICK = FAST.model_copy(update={"chunk": 1, "seconds": 60})
STAGES = ("ask", "answer", "judge", "judge within a budget", "judge by votes", "evaluate", "predict", "import images")
WHEN = {"started", "seconds", "digest"}
"""What a manifest says of when the work was done."""


def call(stage: str, inputs: Path, model: Path, to: Path, *, shard: str | None = None) -> StageResult | Manifest:
    """One of the stages that take shards, on what `inputs` holds, in chunks so small that there are several."""
    root = inputs / "images"
    match stage:
        case "ask":
            options = AskOptions(questions=2, chunk=1, sampling=SHORT, description_sampling=SHORT, borrow_questions=2)
            images = inputs / "images.jsonl"
            return ask(options, policy=model, images=images, root=root, to=to, seed=1, shard=shard)
        case "answer":
            given = AnswerOptions(num_answers=2, chunk=2, sampling=SHORT)
            return answer(given, policy=model, questions=inputs / "asked", root=root, to=to, seed=1, shard=shard)
        case "judge":
            return judge(PANEL, answers=inputs / "answers", to=to, shard=shard)
        case "judge within a budget":
            budget = PANEL.model_copy(update={"budget": 7, "consensus": True, "itself": ItselfOptions(min_agreement=0.4)})
            return judge(budget, answers=inputs / "answers", to=to, seed=3, shard=shard)
        case "judge by votes":
            votes = JudgeOptions(expert="itself", chunk=4, itself=ItselfOptions(min_agreement=0.4))
            return judge(votes, answers=inputs / "answers", to=to, may_abstain=True, shard=shard)
        case "evaluate":
            greedy = EvaluateOptions(chunk=1, sampling=GREEDY)
            return evaluate(greedy, policy=model, samples=inputs / "phantom.jsonl", root=root, to=to, shard=shard)
        case "predict":
            asked = EvaluateOptions(chunk=2, sampling=GREEDY)
            return predict(asked, policy=model, questions=inputs / "phantom.jsonl", root=root, to=to, shard=shard)
    files = IntakeOptions(chunk=3, workers=1, look_for_text="rules", seconds=60)
    return import_images(files, source=inputs / "scans", to=to, salt=inputs / "keys" / "salt", shard=shard)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, tiny_model: Path) -> Path:
    """What every stage reads: phantoms with questions and answers, and a folder of pictures with copies among them."""
    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(phantoms, folder, dirs_exist_ok=True)
    stage = Stage("ask", folder / "asked", AskOptions(), inputs={}, existing="resume")
    how = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=8, seed=0)
    images = [f"unlabelled/{number:05d}.png" for number in (0, 1, 2, 3, 0, 1, 2)]
    rows = [
        Question(id=f"q{number}", images=(image,), text=f"is it {number}?", description="", policy="p", sampling=how)
        for number, image in enumerate(images)
    ]
    stage.write_records("questions", rows)
    stage.finish(counts_in=len(rows), counts_out=len(rows))
    write_answers(folder / "answers", many_answers(20))
    (folder / "scans").mkdir()
    for number in range(11):
        pixels = np.random.default_rng(number % 9).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(folder / "scans" / f"{number:02d}.png")
    return folder


def write_pictures(folder: Path, count: int) -> None:
    """A folder of so many pictures of noise."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(folder / f"{number}.png")


def assert_same(one: Path, other: Path) -> None:
    """Two folders hold the same files, and manifests that differ in when they were written at most."""
    first, second = (
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (one, other)
    )
    assert first.keys() == second.keys()
    assert [
        name for name in first if name not in ("manifest.json", "lock") and not _alike(name, first[name], second[name])
    ] == []
    manifests = [json.loads(files["manifest.json"]) for files in (first, second)]
    for manifest in manifests:
        for name in WHEN:
            del manifest[name]
    assert manifests[0] == manifests[1]


def _alike(name: str, one: bytes, other: bytes) -> bool:
    """Whether two files say the same; of replies the time differs, and the order in which they came."""
    if not name.startswith("exchanges/"):
        return one == other
    ids = [sorted(json.loads(line)["id"] for line in text.splitlines()) for text in (one, other)]
    return ids[0] == ids[1]


@pytest.mark.parametrize("stage", STAGES)
def test_three_shards_gathered_are_the_stage_that_was_not_cut(
    stage: str, inputs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    call(stage, inputs, tiny_model, tmp_path / "whole")
    for number in (2, 3, 1):
        call(stage, inputs, tiny_model, tmp_path / "cut", shard=f"{number}/3")
        assert not (tmp_path / "cut" / "manifest.json").exists()
    gather(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    # An array of jobs that is given again does nothing.
    done = read_manifest(tmp_path / "cut")
    call(stage, inputs, tiny_model, tmp_path / "cut", shard="2/3")
    assert read_manifest(tmp_path / "cut") == gather(tmp_path / "cut") == done
    assert not (tmp_path / "cut" / SHARDS / "2-of-3" / "plan.json").exists()


def several(stage: str, inputs: Path, model: Path, to: Path, shards: tuple[str, ...]) -> None:
    """One process: shard after shard."""
    for shard in shards:
        call(stage, inputs, model, to, shard=shard)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if not stage.startswith("judge ")])
def test_shards_in_two_processes_killed_at_random_and_resumed_are_the_stage_that_was_not_cut(
    stage: str, inputs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    call(stage, inputs, tiny_model, tmp_path / "whole")
    length = time.monotonic() - began
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["stllava.generation.local_sampler", "stllava.stages.evaluate", "stllava.intake.convert"])
    rng = random.Random(stage)
    jobs = [partial(several, stage, inputs, tiny_model, tmp_path / "cut", shards) for shards in (("1/3", "3/3"), ("2/3",))]
    running = [context.Process(target=job) for job in jobs]
    for process in running:
        process.start()
    struck = rng.randrange(2)
    time.sleep(2 * length * rng.random())
    running[struck].kill()
    for process in running:
        process.join()
    assert running[1 - struck].exitcode == 0
    again = context.Process(target=jobs[struck])
    again.start()
    again.join()
    assert again.exitcode == 0
    gather(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


def cut(inputs: Path, to: Path, *shards: str, answers: str = "answers", options: JudgeOptions = PANEL) -> None:
    for shard in shards:
        judge(options, answers=inputs / answers, to=to, shard=shard)


def test_a_missing_shard_is_named(inputs: Path, tmp_path: Path) -> None:
    cut(inputs, tmp_path, "1/4", "3/4")
    with pytest.raises(StllavaError, match=r"of 4 shards 2/4, 4/4 are missing"):
        gather(tmp_path)
    with pytest.raises(StllavaError, match=r"holds shards of a stage that nobody has gathered.*stllava gather"):
        judge(PANEL, answers=inputs / "answers", to=tmp_path)


def test_an_unfinished_or_damaged_shard_is_named_and_made_again_by_its_command(inputs: Path, tmp_path: Path) -> None:
    cut(inputs, tmp_path, "1/2", "2/2")
    folder = tmp_path / SHARDS / "2-of-2"
    (folder / "manifest.json").unlink()
    with pytest.raises(StllavaError, match=r"shard 2/2 \(.*\) is not finished"):
        gather(tmp_path)
    cut(inputs, tmp_path, "2/2")
    part = next(path for path in (folder / "parts").glob("*.jsonl") if "votes" not in path.name)
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(StllavaError, match=r"shard 2/2 .* is not as it was written: .* has changed"):
        gather(tmp_path)
    cut(inputs, tmp_path, "2/2")
    assert gather(tmp_path).counts_out == 20


def test_a_doubled_shard_is_named(inputs: Path, tmp_path: Path) -> None:
    cut(inputs, tmp_path, "1/2", "2/2")
    shutil.copytree(tmp_path / SHARDS / "2-of-2", tmp_path / SHARDS / "copy")
    with pytest.raises(StllavaError, match=r"shard 2/2 .* is there twice: .*2-of-2"):
        gather(tmp_path)


def cut_other_work(how: str, inputs: Path, to: Path, shard: str) -> str:
    """Make a shard of judge with other options or another input; returns in which words that is told."""
    if how == "options":
        cut(inputs, to, shard, options=PANEL.model_copy(update={"orders": 1}))
        return r"config\.orders was 2, now 1"
    assert how == "input"
    write_answers(to.parent / "others", many_answers(5))
    cut(to.parent, to, shard, answers="others")
    return "its input answers has changed"


@pytest.mark.parametrize("how", ["options", "input", "count", "stage"])
def test_a_foreign_shard_is_named_with_what_is_different(how: str, inputs: Path, tiny_model: Path, tmp_path: Path) -> None:
    cut(inputs, tmp_path / "a", "1/3", "3/3")
    match how:
        case "count":
            cut(inputs, tmp_path / "b", "2/4")
            words = "it is one of 4, and others are of 3"
        case "stage":
            call("predict", inputs, tiny_model, tmp_path / "b", shard="2/3")
            words = "it is of the stage predict, and others are of judge"
        case _:
            words = cut_other_work(how, inputs, tmp_path / "b", "2/3")
    shutil.copytree(next((tmp_path / "b" / SHARDS).iterdir()), tmp_path / "a" / SHARDS / "other")
    with pytest.raises(ConflictError, match=rf"shard 2/. \(.*other\) is of other work than shard ./3 .*{words}"):
        gather(tmp_path / "a")


def test_shards_of_several_machines_are_gathered_from_where_they_were_copied_and_left_there(
    inputs: Path, tmp_path: Path
) -> None:
    judge(PANEL, answers=inputs / "answers", to=tmp_path / "whole")
    for number in (1, 2):
        cut(inputs, tmp_path / f"node-{number}", f"{number}/2")
    shards = [tmp_path / f"node-{number}" / SHARDS / f"{number}-of-2" for number in (2, 1)]
    gather(tmp_path / "out", shards=shards)
    assert_same(tmp_path / "whole", tmp_path / "out")
    assert all((shard / "manifest.json").is_file() for shard in shards)
    with pytest.raises(StllavaError, match="is no shard, but the whole of a stage"):
        gather(tmp_path / "again", shards=[tmp_path / "out", *shards])


@pytest.mark.parametrize("how", ["options", "input", "stage"])
def test_shards_of_other_work_than_what_is_finished_are_refused_and_those_of_it_change_nothing(
    how: str, inputs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    cut(inputs, tmp_path / "node", "1/2", "2/2")
    shards = sorted((tmp_path / "node" / SHARDS).iterdir())
    done = gather(tmp_path / "out", shards=shards)
    assert gather(tmp_path / "out", shards=shards) == done
    match how:
        case "stage":
            call("predict", inputs, tiny_model, tmp_path / "other", shard="1/1")
            words = "it is of the stage predict, not of judge"
        case _:
            words = cut_other_work(how, inputs, tmp_path / "other", "1/1")
    with pytest.raises(ConflictError, match=rf"out is finished, and shard 1/1 .* is of other work: {words}"):
        gather(tmp_path / "out", shards=[tmp_path / "other" / SHARDS / "1-of-1"])
    shutil.copytree(tmp_path / "other" / SHARDS, tmp_path / "out" / SHARDS)
    with pytest.raises(ConflictError, match=words):
        gather(tmp_path / "out")
    assert read_manifest(tmp_path / "out") == done


def rewrite(file: Path, *keys: str, value: JsonValue) -> None:
    """Set a value deep in a JSON file."""
    said = inner = json.loads(file.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    file.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("gone", "is gone"),
        ("empty", "it is damaged"),
        ("argument", "'colour' is no argument of it"),
        ("option", r"orders: Input should be"),
    ],
)
def test_the_call_of_a_finished_shard_that_is_gone_or_damaged_is_written_by_its_command(
    how: str, words: str, inputs: Path, tmp_path: Path
) -> None:
    cut(inputs, tmp_path, "1/1")
    called = tmp_path / SHARDS / "1-of-1" / "call.json"
    match how:
        case "gone":
            called.unlink()
        case "empty":
            called.write_text("")
        case "argument":
            rewrite(called, "arguments", "colour", value=1)
        case _:
            rewrite(called, "arguments", "options", "orders", value="x")
    with pytest.raises(StllavaError, match=rf"call\.json .*{words}.*Give that command again"):
        gather(tmp_path)
    made = (called.parent / "manifest.json").stat().st_mtime_ns
    cut(inputs, tmp_path, "1/1")
    assert (called.parent / "manifest.json").stat().st_mtime_ns == made
    assert gather(tmp_path).counts_out == 20


def test_options_of_another_version_are_named(inputs: Path, tmp_path: Path) -> None:
    cut(inputs, tmp_path, "1/1")
    rewrite(tmp_path / SHARDS / "1-of-1" / "plan.json", "config", "novel", value=1)
    with pytest.raises(StllavaError, match=r"shard 1/1 .* has options that are none of this version: novel: .*Gather it with"):
        gather(tmp_path)


def test_a_shard_that_is_only_starting_is_waited_for(inputs: Path, tmp_path: Path) -> None:
    cut(inputs, tmp_path, "1/2")
    (tmp_path / SHARDS / "2-of-2").mkdir()
    (tmp_path / SHARDS / "2-of-2" / "lock").touch()
    with pytest.raises(StllavaError, match=r"2-of-2 has not begun, or is only starting.*Wait for its command"):
        gather(tmp_path)


def test_a_draft_of_a_killed_gather_of_the_same_number_is_in_nobodys_way(inputs: Path, tmp_path: Path) -> None:
    cut(inputs, tmp_path, "1/1")
    (tmp_path / "parts").mkdir()
    for part in (tmp_path / SHARDS / "1-of-1" / "parts").glob("*.jsonl"):
        (tmp_path / "parts" / f".{part.name}.{os.getpid()}.draft").hardlink_to(part)
    assert gather(tmp_path).counts_out == 20


def test_shards_behind_a_link_are_gathered_and_left_there(inputs: Path, tmp_path: Path) -> None:
    cut(inputs, tmp_path / "out", "1/1")
    (tmp_path / "out" / SHARDS).rename(tmp_path / "disk")
    (tmp_path / "out" / SHARDS).symlink_to(tmp_path / "disk")
    assert gather(tmp_path / "out").counts_out == 20
    assert not (tmp_path / "out" / SHARDS).is_symlink()
    assert (tmp_path / "disk" / "1-of-1" / "manifest.json").is_file()


def test_an_input_that_changed_after_the_shards_is_found_out(inputs: Path, tmp_path: Path) -> None:
    write_answers(tmp_path / "answers", many_answers(6))
    cut(tmp_path, tmp_path / "cut", "1/1")
    shutil.rmtree(tmp_path / "answers")
    write_answers(tmp_path / "answers", many_answers(7))
    with pytest.raises(ConflictError, match="its input answers has changed"):
        gather(tmp_path / "cut")


def test_images_that_are_missing_are_counted_over_all_shards_and_looked_at_again(
    inputs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "inputs"
    shutil.copytree(inputs, moved)
    images = sorted((moved / "images" / "unlabelled").iterdir())
    kept = images[0].read_bytes()
    images[0].unlink()
    for number in (1, 2):
        call("ask", moved, tiny_model, tmp_path / "cut", shard=f"{number}/2")
    call("ask", moved, tiny_model, tmp_path / "whole")
    gather(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")
    assert "image missing" in read_manifest(tmp_path / "cut").dropped
    images[0].write_bytes(kept)


@pytest.mark.parametrize(
    ("text", "remedy"), [("0/3", "Count from 1"), ("4/3", "3/8"), ("one", "3/8"), ("1/0", "3/8"), ("-1/3", "3/8")]
)
def test_a_shard_that_is_none_is_refused(text: str, remedy: str) -> None:
    with pytest.raises(StllavaError, match=rf"from 1/n to n/n.*{remedy}"):
        Shard.parse(text)


def test_a_budget_of_money_takes_no_shard(inputs: Path, tmp_path: Path) -> None:
    options = PANEL.model_copy(update={"budget_cost": 1.0})
    with pytest.raises(StllavaError, match="budget_cost with a shard"):
        judge(options, answers=inputs / "answers", to=tmp_path, shard="1/2")


def test_every_chunk_is_of_one_shard() -> None:
    assert all(sum(Shard(number, 5).owns(index) for number in range(1, 6)) == 1 for index in range(23))


def private_names(keys: Path) -> dict[str, list[str]]:
    """What the private lists beside a salt name: of those of files their names, of those of details the causes."""
    lists: dict[str, list[str]] = {"files": [], "details": []}
    for path in sorted(keys.glob("salt.*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lists[path.name.split(".")[2]] += [Path(row[1]).name if isinstance(row, list) else row["row"]["cause"] for row in rows]
    return lists


@pytest.mark.parametrize("frames", ["all", "middle"])
def test_private_lists_of_an_earlier_import_into_that_folder_give_way_to_those_of_the_shards(
    frames: Literal["all", "middle"], tmp_path: Path
) -> None:
    options = QUICK.model_copy(update={"frames": frames})
    salt = tmp_path / "keys" / "salt"
    files, details = private_lists(open_salt(salt, output=tmp_path / "data"), salt, to=tmp_path / "data", shard=None)
    files.write_text(f"{json.dumps([0, str(tmp_path / 'in' / 'old.png'), 5, 1, None])}\n")
    details.write_text('{"row": {"cause": "old"}}\n')
    write_pictures(tmp_path / "in", 4)
    (tmp_path / "in" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for shard in ("1/2", "2/2"):
        import_folder(tmp_path, options, shard=shard)
    gather(tmp_path / "data")
    names = ["0.png", "1.png", "2.png", "3.png"]
    assert private_names(tmp_path / "keys") == {"files": names, "details": ["truncated"]}


def test_private_lists_are_joined_again_by_a_gather_that_did_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "in", 3)
    (tmp_path / "in" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    for shard in ("1/2", "2/2"):
        import_folder(tmp_path, QUICK, shard=shard)
    with monkeypatch.context() as patch:
        patch.setattr("stllava.intake.run.write_card", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            gather(tmp_path / "data")
    gather(tmp_path / "data")
    assert private_names(tmp_path / "keys") == {"files": ["0.png", "1.png", "2.png"], "details": ["truncated"]}


def test_lists_of_shards_that_ran_elsewhere_are_missed_and_those_of_another_tree_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = open_salt(tmp_path / "salt", output=tmp_path / "data")
    shards = [Shard(1, 2), Shard(2, 2)]
    whole = private_lists(secret, tmp_path / "salt", to=tmp_path / "data", shard=None)
    stale = private_lists(secret, tmp_path / "salt", to=tmp_path / "data", shard=shards[0])
    for files, details in (whole, stale):
        files.write_text('[0, "in/old.png", 5, 1, null]\n')
        details.write_text('{"old": 1}\n')
    take = partial(take_private_lists, shards, source=tmp_path / "in", to=tmp_path / "data", salt=tmp_path / "salt")
    assert take(fingerprint="0" * 16) == SharedLists()
    assert whole[1].read_text() == ""
    assert stale[1].read_text() == '{"old": 1}\n'
    assert "stands where it ran" in caplog.text


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_picture_of_a_shard_whose_end_is_lost_is_made_again(kind: Literal["png", "jpeg"], tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    options = QUICK.model_copy(update={"format": kind, "look_for_text": "rules"})
    import_folder(tmp_path, options, shard="1/1", make=default_toolbox)
    picture = next(path for path in (tmp_path / "data" / SHARDS / "1-of-1" / "images").rglob("*.*"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:1000] + bytes(len(whole) - 1000))
    gather(tmp_path / "data")
    assert (tmp_path / "data" / "images" / picture.parent.name / picture.name).read_bytes() == whole


def test_a_picture_of_a_shard_that_is_damaged_within_is_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 1)
    options = QUICK.model_copy(update={"look_for_text": "rules"})
    import_folder(tmp_path, options, shard="1/1", make=default_toolbox)
    picture = next((tmp_path / "data" / SHARDS).rglob("*.png"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:60] + bytes(1000) + whole[1060:])
    for _ in range(2):
        with pytest.raises(StllavaError, match=rf"{picture.name} is damaged: .*Delete {picture.name}"):
            gather(tmp_path / "data")
    for path in (tmp_path / "data").rglob(picture.name):
        path.unlink()
    assert gather(tmp_path / "data").counts_out == 1
