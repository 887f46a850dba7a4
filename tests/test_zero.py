"""DeepSpeed's ZeRO: the curves and weights of one process, checkpoints that go on anywhere, and what is refused.

The trainings run where deepspeed is installed: `make deepspeed` puts it into an environment of its own.
"""

import importlib.util
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig

from stllava.config import LaunchOptions, LoraOptions, SftOptions
from stllava.errors import StllavaError
from stllava.launch import CALL, command_of, launched
from stllava.stages.dpo import dpo
from stllava.stages.sft import sft
from stllava.training.zero import ZeroAdamW, refuse_unsupported
from test_processes import ADAPTERS, LEARNING, assert_same_training, kill_at_a_checkpoint, uneven, uneven_dpo

SHIPPED = Path(__file__).parents[1] / "examples/accelerate"
STAGES = [2, 3]
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: `make deepspeed` runs this"
)


def zero(stage: int, *, processes: int = 2) -> LaunchOptions:
    """Processes that share a training out with the shipped configuration."""
    return LaunchOptions(processes=processes, config=SHIPPED / f"zero{stage}.yaml")


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("lora", [LoraOptions(), ADAPTERS], ids=["in full", "adapters"])
def test_processes_under_deepspeed_learn_preferences_as_one_does(
    tiny_model: Path, phantoms: Path, tmp_path: Path, lora: LoraOptions
) -> None:
    options, given = uneven_dpo(tiny_model, phantoms, lora)
    dpo(options, **given, to=tmp_path / "one")  # type: ignore[arg-type]
    for stage in STAGES:
        launched(zero(stage), dpo, options, **given, to=tmp_path / f"zero{stage}")  # type: ignore[arg-type]
        assert_same_training(tmp_path / "one", tmp_path / f"zero{stage}")


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", STAGES)
def test_a_training_under_deepspeed_that_was_killed_goes_on_in_one_process_and_under_the_other_stage(
    tiny_model: Path, phantoms: Path, tmp_path: Path, stage: int
) -> None:
    _, with_text = uneven(phantoms)
    both = tmp_path / "both.jsonl"
    text, _ = with_text.read_text(encoding="utf-8").splitlines(keepends=True)
    both.write_text(text + (phantoms / "conversations.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    # Steps of one tree: the other process has none, and a step of text alone leaves the vision tower as it is.
    options: SftOptions = LEARNING.model_copy(update={"epochs": 10, "batch_size": 1})
    given: dict[str, Any] = {"model": str(tiny_model), "conversations": both, "images": phantoms / "images"}
    killed = tmp_path / "killed"
    (tmp_path / CALL).write_bytes(pickle.dumps((zero(stage), sft, (options,), {**given, "to": killed})))
    kill_at_a_checkpoint(command_of(zero(stage), str(tmp_path)), killed, named_by=tmp_path)
    shutil.copytree(killed, tmp_path / "alone")
    launched(zero(5 - stage, processes=3), sft, options, **given, to=killed)
    for name in ("alone", "whole"):
        sft(options, **given, to=tmp_path / name)
    assert_same_training(tmp_path / "whole", tmp_path / "alone")
    assert_same_training(tmp_path / "whole", killed)


@pytest.mark.parametrize(
    ("config", "quantised", "says"),
    [
        ({"zero_optimization": {"stage": 1}}, False, "stage 1"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, False, "offload"),
        ({"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}, False, "section optimizer"),
        (
            {"zero_optimization": {"stage": 2}, "mismatches": ["- ds gradient_clipping=2.0 vs hf max_grad_norm=1.0"]},
            False,
            "max_grad_norm",
        ),
        ({"zero_optimization": {"stage": 2}}, True, "4bit"),
    ],
    ids=["stage 1", "offload", "an optimizer of its own", "another clipping", "4 bits"],
)
def test_what_deepspeed_would_do_otherwise_is_refused(config: dict[str, Any], quantised: bool, says: str) -> None:
    asked = HfDeepSpeedConfig(config)
    asked.mismatches = config.get("mismatches", [])
    with pytest.raises(StllavaError, match=says):
        refuse_unsupported(asked, quantised=quantised)


def test_a_launch_without_deepspeed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(StllavaError, match=r"stllava\[deepspeed\]"):
        launched(zero(2), sft, SftOptions(), model="small", conversations=tmp_path, images=tmp_path, to=tmp_path)


def test_a_group_that_rests_is_left_as_torch_leaves_weights_without_a_gradient() -> None:
    """torch's own AdamW, whose weights have no gradient in the second step, against ours, which gets zeros there."""
    ours, torchs = ([torch.nn.Parameter(torch.ones(3)) for _ in range(2)] for _ in range(2))
    names = ("vision (no decay)", "language")
    kinds = [ZeroAdamW, torch.optim.AdamW]
    optimizers = [
        kind([{"name": name, "params": [one]} for name, one in zip(names, of, strict=True)], lr=0.1, weight_decay=0.1)
        for kind, of in zip(kinds, (ours, torchs), strict=True)
    ]
    for step in range(3):
        for optimizer, of in zip(optimizers, (ours, torchs), strict=True):
            text_alone = step == 1
            if isinstance(optimizer, ZeroAdamW):
                optimizer.rest = frozenset({"vision"} if text_alone else ())
            for place, one in enumerate(of):
                missing = text_alone and place == 0
                one.grad = torch.full((3,), 0.0 if missing else step + 1.0)
                if missing and of is torchs:
                    one.grad = None
            optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, torchs, strict=True))


@pytest.mark.parametrize(
    "text", [None, b"", b"- a list", b"a: [", b"a: \xff"], ids=["absent", "empty", "no mapping", "no YAML", "no UTF-8"]
)
def test_a_launch_by_what_is_no_configuration_is_refused_in_words(tmp_path: Path, text: bytes | None) -> None:
    config = tmp_path / "launch.yaml"
    if text is not None:
        config.write_bytes(text)
    with pytest.raises(StllavaError, match=rf"{config} .*expected a configuration of accelerate"):
        launched(
            LaunchOptions(processes=2, config=config),
            sft,
            SftOptions(),
            model="small",
            conversations=tmp_path,
            images=tmp_path,
            to=tmp_path,
        )
