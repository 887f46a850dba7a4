"""Training in several processes: the same steps, shared out, and the weights of one process."""

import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from conftest import TINY
from helpers.sharded import SETTINGS
from stllava.config import DpoOptions, GroupRates, LaunchOptions, LoraOptions, SftOptions
from stllava.config.training import AdapterOptions
from stllava.data.conversations import read_conversations
from stllava.errors import CollapseError, StllavaError
from stllava.launch import CALL, command_of, launched
from stllava.model.load import load_policy
from stllava.model.prompt import Segment
from stllava.records import Conversation, Lineage, Message, Preference
from stllava.stages.dpo import dpo
from stllava.stages.results import TrainingResult
from stllava.stages.sft import sft
from stllava.store import PARTS, Stage, locked, read_manifest
from stllava.training.processes import Processes, current_processes
from stllava.training.sft_dataset import SftDataset
from stllava.training.step_sharing import Forward, share_evenly, share_step
from stllava.tree.forward import Tree, build_tree, computed_tokens

RATES = GroupRates(language=1e-3, projector=1e-3, vision=1e-3)
LEARNING = SftOptions(learning_rate=RATES, epochs=3, batch_size=3, save_steps=2)
TWO = LaunchOptions(processes=2)


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 6))
def test_work_is_shared_evenly(work: list[int], groups: int) -> None:
    shared = share_evenly(work, groups=groups)
    assert sorted(index for group in shared for index in group) == list(range(len(work)))
    loads = [sum(work[index] for index in group) for group in shared]
    # No group could give what it got last to the one that has least.
    assert max(loads) - min(loads) <= max(work, default=0)


@pytest.fixture(scope="module")
def some_trees(tiny_model: Path, phantoms: Path) -> list[Tree]:
    """Trees of six images, and two of text alone."""
    policy = load_policy(tiny_model)
    read, _ = read_conversations(phantoms / "conversations.jsonl")
    dataset = SftDataset(policy, read, images=phantoms / "images", self_question_ratio=0.0, seed=0, max_tokens=4096)
    trees = [dataset.tree(index, 0) for index in range(len(dataset.groups))]
    text = [Segment("say it", False), Segment("now", True)]
    blank = trees[0].prefix.__class__("", (), phantoms)
    return [*trees, *(build_tree(policy, blank, [text] * count) for count in (1, 3))]


@pytest.mark.parametrize("processes", [2, 3, 9])
@pytest.mark.parametrize("max_tokens", [120, 4096])
def test_every_tree_counts_once_and_all_processes_keep_step(
    tiny_model: Path, some_trees: list[Tree], processes: int, max_tokens: int
) -> None:
    policy = load_policy(tiny_model)
    shared = share_step(policy, some_trees, processes=processes, max_tokens=max_tokens)
    learned = [index for forwards in shared for forward in forwards if forward.counts for index in forward.trees]
    assert sorted(learned) == list(range(len(some_trees)))
    assert len({len(forwards) for forwards in shared}) == 1
    for together in zip(*shared, strict=True):
        assert len({bool(some_trees[forward.trees[0]].prefix.images) for forward in together}) == 1
    for forward in (forward for forwards in shared for forward in forwards if not forward.counts):
        alike = [tree for tree in some_trees if bool(tree.prefix.images) is bool(some_trees[forward.trees[0]].prefix.images)]
        assert computed_tokens(policy, some_trees[forward.trees[0]]) == min(computed_tokens(policy, tree) for tree in alike)


def test_one_process_computes_all_forwards_in_their_order(tiny_model: Path, some_trees: list[Tree]) -> None:
    (alone,) = share_step(load_policy(tiny_model), some_trees, processes=1, max_tokens=4096)
    assert all(forward.counts for forward in alone)
    assert sorted(index for forward in alone for index in forward.trees) == list(range(len(some_trees)))
    assert Forward((0,)).counts


def test_a_process_alone_shares_with_itself() -> None:
    alone = Processes(0, 1)
    assert alone.leads
    assert (alone.share("a"), alone.gather([1, 2]), alone.mean({"loss": 2.0})) == ("a", [1, 2], {"loss": 2.0})


def test_an_error_crosses_to_another_process_as_it_is() -> None:
    error = CollapseError("chosen answers die out", expected="answers", remedy="Lower it.")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is CollapseError
    assert str(twin) == str(error)


def curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    return dict(read_manifest(folder).curves)


def assert_same_training(one: Path, other: Path) -> None:
    """The same curves, and weights that agree."""
    first, second = curves(one), curves(other)
    assert first.keys() == second.keys()
    assert "loss" in first
    for name, curve in first.items():
        assert [step for step, _ in second[name]] == [step for step, _ in curve], name
        ours, theirs = ([value for _, value in one] for one in (second[name], curve))
        if name == "reward_accuracy":
            # Until the policy has moved its rewards are zero, and their signs those of rounding.
            moved = [abs(margin) > 1e-4 for _, margin in first["reward_margin"]]
            assert any(moved)
            ours, theirs = ([value for value, counts in zip(one, moved, strict=True) if counts] for one in (ours, theirs))
        assert ours == pytest.approx(theirs, rel=1e-5, abs=2e-5), name
    weights, others = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == others.keys()
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-4


def uneven(phantoms: Path) -> tuple[Path, Path]:
    """Pairs about two images, 1 of the first and 40 of the second, and conversations of which one shows no image."""
    names = sorted(path.relative_to(phantoms / "images").as_posix() for path in (phantoms / "images/unlabelled").glob("*.png"))
    pairs = [
        Preference(
            id=f"{name}-{number}",
            images=(name,),
            prompt=(Message(role="user", content=f"question {number}?"),),
            chosen="yes",
            rejected="no",
            margin=1.0,
            lineage=Lineage(question_id=f"{number}", answers_id=f"{name}-{number}", judgment_id=f"{name}-{number}"),
        )
        for name, count in zip(names, (1, 40), strict=False)
        for number in range(count)
    ]
    stage = Stage("pair", phantoms / "uneven", SftOptions(), inputs={}, existing="resume")
    stage.write_records("preferences", pairs)
    stage.finish(counts_in=len(pairs), counts_out=len(pairs))
    read, _ = read_conversations(phantoms / "conversations.jsonl")
    text = Conversation(
        id="text", images=(), messages=(Message(role="user", content="say it"), Message(role="assistant", content="now"))
    )
    path = phantoms / "with-text.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in [text, *read[:1]]), encoding="utf-8")
    return phantoms / "uneven", path


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    pairs, conversations = uneven(phantoms)
    for name, launch in (("one", LaunchOptions()), ("two", TWO)):
        launched(
            launch,
            sft,
            LEARNING,
            model=str(tiny_model),
            conversations=phantoms / "conversations.jsonl",
            images=phantoms / "images",
            to=tmp_path / name / "sft",
        )
        launched(
            launch,
            dpo,
            DpoOptions(learning_rate=RATES, epochs=2, batch_size=2, max_tokens_per_forward=300),
            policy=tmp_path / name / "sft",
            preferences=pairs,
            images=phantoms / "images",
            conversations=conversations,
            to=tmp_path / name / "dpo",
        )
    assert_same_training(tmp_path / "one/sft", tmp_path / "two/sft")
    assert_same_training(tmp_path / "one/dpo", tmp_path / "two/dpo")


@pytest.mark.slow
def test_two_processes_build_the_small_model_of_one(phantoms: Path, tmp_path: Path) -> None:
    given = {"model": "small", "small": TINY, "conversations": phantoms / "conversations.jsonl", "images": phantoms / "images"}
    for name, launch in (("one", LaunchOptions()), ("two", TWO)):
        launched(launch, sft, LEARNING, **given, to=tmp_path / name)  # type: ignore[arg-type]
    assert_same_training(tmp_path / "one", tmp_path / "two")


def kill_at_a_checkpoint(command: list[str], to: Path, *, named_by: Path) -> None:
    """Start processes that train to the folder `to`, and kill all that `named_by` names once a checkpoint is there."""
    processes = subprocess.Popen(command)
    while not list((to / PARTS / "training").glob("checkpoint-4*")) and processes.poll() is None:
        time.sleep(0.05)
    assert processes.poll() is None, "it ended before it could be killed"
    processes.kill()
    processes.wait()
    # The trainers are in sessions of their own.
    subprocess.run(["pkill", "-KILL", "-f", str(named_by)], check=True)
    wait_until_free(to)


def wait_until_free(folder: Path) -> None:
    """Wait until processes that are dying hold the folder no more."""
    for _ in range(600):
        try:
            with locked(folder):
                return
        except StllavaError:
            time.sleep(0.1)
    raise AssertionError(f"{folder} is still held")


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_in_one(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    longer = LEARNING.model_copy(update={"epochs": 20})
    given = {"model": str(tiny_model), "conversations": phantoms / "conversations.jsonl", "images": phantoms / "images"}
    killed = tmp_path / "killed"
    (tmp_path / CALL).write_bytes(pickle.dumps((TWO, sft, (longer,), {**given, "to": killed})))
    kill_at_a_checkpoint(command_of(TWO, str(tmp_path)), killed, named_by=tmp_path)
    for to in (killed, tmp_path / "whole"):
        sft(longer, **given, to=to)  # type: ignore[arg-type]
    assert_same_training(tmp_path / "whole", killed)


@pytest.mark.slow
def test_an_error_in_launched_processes_is_the_stages_own(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(StllavaError, match=r"none\.jsonl"):
        launched(
            TWO,
            sft,
            LEARNING,
            model=str(tiny_model),
            conversations=tmp_path / "none.jsonl",
            images=phantoms / "images",
            to=tmp_path / "sft",
        )


def test_an_error_of_any_process_is_the_stages_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose own share of the images is gone may be the only one to end in an error."""
    code = """
import os, sys
from pathlib import Path
from stllava import launch
os.environ |= {"RANK": "1", "WORLD_SIZE": "2"}
def stage(**_):
    raise launch.StllavaError("an image is gone", expected="it", remedy="Bring it back.")
launch.pickle.loads = lambda _: (launch.LaunchOptions(processes=2), stage, (), {})
launch.main(Path(sys.argv[1]))
"""
    monkeypatch.setattr("stllava.launch.command_of", lambda launch, folder: [sys.executable, "-c", code, folder])
    with pytest.raises(StllavaError, match="an image is gone"):
        launched(TWO, sft, LEARNING, model="none", conversations=tmp_path, images=tmp_path, to=tmp_path)


@pytest.mark.parametrize("text", ["a: 2026-13-45", "[" * 3000], ids=["no date", "too deep"])
def test_a_configuration_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(StllavaError, match="cannot be read"):
        launched(LaunchOptions(processes=2, config=tmp_path / "odd.yaml"), sft, LEARNING, model="none", to=tmp_path)  # type: ignore[call-arg]


def test_another_number_of_processes_than_was_asked_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With distributed_type NO, which is its default, accelerate starts one process however many it is asked for."""
    code = "import sys; from pathlib import Path; from stllava import launch; launch.main(Path(sys.argv[1]))"
    monkeypatch.setattr("stllava.launch.command_of", lambda launch, folder: [sys.executable, "-c", code, folder])
    with pytest.raises(StllavaError, match="2 training processes were asked for and 1 started"):
        launched(TWO, sft, LEARNING, model="none", conversations=tmp_path, images=tmp_path, to=tmp_path)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two", "RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "", "RANK": "0"},
    ],
    ids=str,
)
def test_an_environment_that_names_no_process_is_refused(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert current_processes.__wrapped__() == Processes(0, 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StllavaError, match=r"WORLD_SIZE is .* name no process of a training"):
        current_processes.__wrapped__()


def sharded(folder: Path, count: int, stage: Callable[..., TrainingResult], *options: object, **given: object) -> list[str]:
    """Hand a call over to `count` processes that share the model out; returns the command that runs it."""
    folder.mkdir(exist_ok=True)
    (folder / CALL).write_bytes(pickle.dumps((LaunchOptions(processes=count), stage, options, given)))
    command = command_of(LaunchOptions(processes=count), str(folder))
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    settings = SETTINGS | {"PYTHONPATH": paths}
    return ["env", *(f"{name}={value}" for name, value in settings.items()), *command[:-2], "helpers.sharded", command[-1]]


def uneven_dpo(tiny_model: Path, phantoms: Path, lora: LoraOptions) -> tuple[DpoOptions, dict[str, Path]]:
    """Options of dpo, and what it learns from: trees of 1 and 40 chains, and a replay of text alone."""
    pairs, conversations = uneven(phantoms)
    options = DpoOptions(learning_rate=RATES, epochs=2, batch_size=2, max_tokens_per_forward=300, save_steps=0, lora=lora)
    given = {"policy": tiny_model, "preferences": pairs, "images": phantoms / "images", "conversations": conversations}
    return options, given


ADAPTERS = LoraOptions(language=AdapterOptions(rank=4, dropout=0.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "lora",
    [LoraOptions(), ADAPTERS, ADAPTERS.model_copy(update={"quantise": "4bit"})],
    ids=["in full", "adapters", "beside 4 bits"],
)
def test_processes_that_share_the_model_out_learn_what_one_does(
    tiny_model: Path, phantoms: Path, tmp_path: Path, lora: LoraOptions
) -> None:
    options, given = uneven_dpo(tiny_model, phantoms, lora)
    dpo(options, **given, to=tmp_path / "one")  # type: ignore[arg-type]
    subprocess.run(sharded(tmp_path / "call", 2, dpo, options, **given, to=tmp_path / "two"), check=True)
    # One that ends while it is still in the group may be aborted by a thread of the group's.
    assert sorted(path.name for path in (tmp_path / "call").glob("parted-*")) == ["parted-0", "parted-1"]
    assert_same_training(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_sharded_training_that_was_killed_goes_on_in_another_number_of_processes(
    tiny_model: Path, phantoms: Path, tmp_path: Path
) -> None:
    longer = LEARNING.model_copy(update={"epochs": 20})
    given = {
        "model": str(tiny_model),
        "conversations": phantoms / "conversations.jsonl",
        "images": phantoms / "images",
    }
    killed = tmp_path / "killed"
    kill_at_a_checkpoint(sharded(tmp_path / "call", 2, sft, longer, **given, to=killed), killed, named_by=tmp_path)
    shutil.copytree(killed, tmp_path / "alone")
    subprocess.run(sharded(tmp_path / "call", 3, sft, longer, **given, to=killed), check=True)
    for name in ("alone", "whole"):
        sft(longer, **given, to=tmp_path / name)  # type: ignore[arg-type]
    assert_same_training(tmp_path / "whole", killed)
    assert_same_training(tmp_path / "whole", tmp_path / "alone")
