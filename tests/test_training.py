"""What sft and dpo do to the weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from stllava.config import DpoOptions, GroupRates, LoraOptions, SftOptions
from stllava.data.conversations import read_conversations
from stllava.errors import StllavaError
from stllava.model.adapters import group_of
from stllava.model.load import load_policy
from stllava.model.prompt import segments
from stllava.model.train import newest_whole_checkpoint
from stllava.records import Answers, Judgment, Preference, Sampling
from stllava.stages.dpo import dpo
from stllava.stages.pair import best_against_worst
from stllava.stages.sft import sft
from stllava.store import Stage
from stllava.tree.losses import dpo_sigmoid
from stllava.tree.preferences import Choices

RATES = GroupRates(language=1e-3, projector=1e-3, vision=1e-3)
QUICK = SftOptions(learning_rate=RATES, warmup=0.0, schedule="constant", batch_size=3, save_steps=0)


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in load_policy(folder).model.state_dict().items()}


def learn(options: SftOptions, tiny_model: Path, phantoms: Path, to: Path) -> Path:
    sft(options, model=str(tiny_model), conversations=phantoms / "conversations.jsonl", images=phantoms / "images", to=to)
    return to


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def parameters(folder: Path) -> set[str]:
    return {name for name, _ in load_policy(folder).model.named_parameters()}


# The class token and the last norm of the vision tower do not reach the image tokens that LLaVA takes; the position
# of the class token is one row of a tensor that learns.
UNUSED = ("post_layernorm",)


def test_after_a_step_every_trainable_parameter_has_changed(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    after = learn(QUICK, tiny_model, phantoms, tmp_path / "sft")
    still = parameters(tiny_model) - changed(weights(tiny_model), weights(after))
    assert {name for name in still if not any(part in name for part in UNUSED)} == set()


@pytest.mark.parametrize("frozen", ["language", "projector", "vision"])
def test_a_frozen_part_does_not_change_at_all(tiny_model: Path, phantoms: Path, tmp_path: Path, frozen: str) -> None:
    options = QUICK.model_copy(update={"learning_rate": RATES.model_copy(update={frozen: 0.0})})
    after = learn(options, tiny_model, phantoms, tmp_path / "sft")
    groups = {group_of(name) for name in changed(weights(tiny_model), weights(after))}
    assert groups == {"language", "projector", "vision"} - {frozen}


def test_lora_learns_and_is_merged_into_a_plain_folder(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    lora = LoraOptions(language_rank=4, vision_rank=2, dropout=0.0)
    after = learn(QUICK.model_copy(update={"lora": lora}), tiny_model, phantoms, tmp_path / "sft")
    names = changed(weights(tiny_model), weights(after))
    assert {group_of(name) for name in names} == {"language", "projector", "vision"}
    assert not any("norm" in name or "embed" in name for name in names)
    assert not list(after.glob("adapter*"))


def test_four_forwards_of_one_image_are_one_forward_of_four(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    wide = learn(QUICK.model_copy(update={"batch_size": 4}), tiny_model, phantoms, tmp_path / "wide")
    long = learn(QUICK.model_copy(update={"batch_size": 1, "accumulate": 4}), tiny_model, phantoms, tmp_path / "long")
    one, other = (Stage("sft", folder, QUICK, inputs={}, existing="resume") if False else folder for folder in (wide, long))
    from stllava.store import read_manifest

    losses = [dict(read_manifest(folder).curves["loss"]) for folder in (one, other)]
    assert losses[0].keys() == losses[1].keys()
    for step, value in losses[0].items():
        assert losses[1][step] == pytest.approx(value, abs=2e-4)
    for name, value in weights(wide).items():
        torch.testing.assert_close(value, weights(long)[name], atol=2e-4, rtol=1e-3)
