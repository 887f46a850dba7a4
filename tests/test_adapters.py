"""What learns, through what and how fast: LoRA by part, weights of 4 bits, activations computed twice, the two 7B recipes."""

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from helpers.architectures import ARCHITECTURES, llava, llava_group
from stllava.config import DpoOptions, GroupRates, LoraOptions, SftOptions
from stllava.config.base import validate
from stllava.config.training import AdapterOptions
from stllava.data.conversations import read_conversations
from stllava.errors import StllavaError
from stllava.model.adapters import (
    learned,
    load_learner,
    merged,
    no_kernels_of_the_hub,
    prepare_model,
    quantise,
    table,
    take_over,
)
from stllava.model.load import Policy, Prefix, load_policy
from stllava.model.prompt import Segment
from stllava.recipe import RECIPES, RunOptions, load_recipe
from stllava.records import Lineage, Message, Preference, Reference
from stllava.stages.dpo import dpo
from stllava.stages.sft import sft
from stllava.store import Stage, read_records
from stllava.training.callbacks import GradientCheck
from stllava.training.sft_dataset import SftDataset, fit_conversations
from stllava.tree.forward import Tree, activation_checkpointing, build_tree, collate, last_mlp, token_log_probabilities

PARTS = ("language", "projector", "vision")
RATES = GroupRates(language=4e-4, projector=2e-4, vision=1e-4)
LORA = LoraOptions(language=AdapterOptions(rank=4, alpha=12, dropout=0.1), vision=AdapterOptions(rank=2, dropout=0.25))
PAPER_LIKE = SftOptions(learning_rate=RATES, lora=LORA, batch_size=6, schedule="constant", warmup=0.0, save_steps=0)
IN_4_BITS = PAPER_LIKE.model_copy(update={"lora": LORA.model_copy(update={"quantise": "4bit"})})
with_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: nothing of 4 bits is tested"
)


def plain_name(name: str) -> str:
    """A parameter's name before there were adapters."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {plain_name(name): value.detach().clone() for name, value in model.named_parameters()}


def learn(policy: Policy, phantoms: Path, options: SftOptions, work: Path, *, merge: bool) -> None:
    """One optimizer step on all phantoms."""
    read, _ = read_conversations(phantoms / "conversations.jsonl")
    lessons = SftDataset(policy, read, images=phantoms / "images", self_question_ratio=0.5, seed=0, max_tokens=512)
    fit_conversations(lessons, options, work, merge=merge)


class Seen:
    """The gradients and the optimizer's learning rates before the first step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached: dict[str, bool] = {}
        self.rates: dict[str, float] = {}
        check: Callable[..., None] = GradientCheck.on_pre_optimizer_step

        def look(callback: GradientCheck, *given: Any, model: nn.Module, optimizer: Any, **named: Any) -> None:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    self.reached[plain_name(name)] = parameter.grad is not None and bool((parameter.grad != 0).any())
            self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
            check(callback, *given, model=model, optimizer=optimizer, **named)

        monkeypatch.setattr(GradientCheck, "on_pre_optimizer_step", look)


def test_after_a_step_both_loras_and_the_projector_have_moved_at_their_own_rates_and_all_else_is_bit_identical(
    tiny_model: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    policy = load_learner(tiny_model, PAPER_LIKE)
    before = weights(policy.model)
    learn(policy, phantoms, PAPER_LIKE, tmp_path, merge=False)
    after = weights(policy.model)
    assert {name for name, value in before.items() if not torch.equal(value, after[name])} == {
        name for name in before if llava_group(name) == "projector"
    }
    moved = {name for name, value in after.items() if ".lora_B." in name and bool(value.any())}
    assert moved == {name for name, there in seen.reached.items() if ".lora_B." in name and there}
    assert {llava_group(name) for name in moved} == {"language", "vision"}
    assert not any(there for name, there in seen.reached.items() if ".lora_A." in name)
    assert all(there for name, there in seen.reached.items() if llava_group(name) == "projector")
    assert seen.rates == {
        "language": RATES.language,
        "vision": RATES.vision,
        "projector": RATES.projector,
        "projector (no decay)": RATES.projector,
    }


def test_each_part_has_adapters_of_its_own_rank_alpha_and_dropout_on_every_linear_layer_but_the_head() -> None:
    policy = llava()
    linears = {name for name, module in policy.model.named_modules() if isinstance(module, nn.Linear)}
    model = prepare_model(policy.model, PAPER_LIKE)
    layers = {plain_name(name): one for name, one in model.named_modules() if isinstance(one, LoraLayer)}
    assert layers.keys() == {name for name in linears if name != "lm_head" and llava_group(name) != "projector"}
    for name, layer in layers.items():
        group = llava_group(name)
        wanted = {"language": (4, 12 / 4, 0.1), "vision": (2, 2.0, 0.25)}[group]
        assert (layer.r[group], layer.scaling[group], cast(nn.Dropout, layer.lora_dropout[group]).p) == wanted
        assert layer.active_adapters == ["language", "vision"]


def adapted(policy: Policy, options: SftOptions) -> PeftModel:
    """A model whose adapters have learned something."""
    torch.manual_seed(0)
    model = prepare_model(policy.model, options)
    assert isinstance(model, PeftModel)
    for name, value in learned(model).items():
        if ".lora_B." in name:
            value.normal_(std=0.05)
    return model.eval()


def batch_of(policy: Policy, phantoms: Path) -> dict[str, Tensor]:
    prefix = Prefix("<|user|><image>", ("test/00000.png",), phantoms / "images")
    chains = [
        [Segment(f" {text}?<|end|><|assistant|>", False), Segment("a mass<|end|>", True)] for text in ("what", "is there")
    ]
    return collate(policy, [build_tree(policy, prefix, chains)])


def test_the_merged_model_says_what_the_adapted_one_says(phantoms: Path) -> None:
    policy = llava()
    batch = batch_of(policy, phantoms)
    with torch.no_grad():
        start, names = token_log_probabilities(policy.model, batch), list(policy.model.state_dict())
        model = adapted(policy, PAPER_LIKE)
        with_adapters = token_log_probabilities(model, batch)
        plain = merged(model, PAPER_LIKE, dtype=torch.float32)
        after = token_log_probabilities(plain, batch)
    assert list(plain.state_dict()) == names
    assert all(parameter.requires_grad for parameter in plain.parameters())
    torch.testing.assert_close(after, with_adapters, atol=1e-4, rtol=0)
    assert float((with_adapters - start).abs().max()) > 0.1


def test_what_learns_in_full_beside_adapters_is_all_of_its_part() -> None:
    options = PAPER_LIKE.model_copy(update={"lora": LoraOptions(vision=AdapterOptions(rank=2))})
    model = prepare_model(llava().model, options)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (llava_group(name) != "vision" or ".lora_" in name)


def test_a_frozen_part_gets_no_adapters() -> None:
    options = PAPER_LIKE.model_copy(update={"learning_rate": RATES.model_copy(update={"vision": 0.0})})
    model = prepare_model(llava().model, options)
    assert {llava_group(name) for name in learned(model)} == {"language", "projector"}


def test_a_model_of_half_precision_learns_in_float32_and_is_itself_again_when_merged() -> None:
    policy = llava()
    policy.model.bfloat16()
    model = prepare_model(policy.model, PAPER_LIKE)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name in learned(model) else torch.bfloat16)
    plain = merged(model, PAPER_LIKE, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("lora", [LORA, LoraOptions()], ids=["lora", "in full"])
def test_a_step_in_bfloat16_moves_every_part(tiny_model: Path, phantoms: Path, tmp_path: Path, lora: LoraOptions) -> None:
    policy = load_policy(tiny_model, dtype=torch.bfloat16)
    before = weights(policy.model)
    options = PAPER_LIKE.model_copy(update={"lora": lora, "precision": "bfloat16", "checkpoint_activations": True})
    learn(policy, phantoms, options, tmp_path, merge=True)
    after = weights(policy.model)
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert {llava_group(name) for name, value in before.items() if not torch.equal(value, after[name])} == set(PARTS)


@pytest.mark.parametrize(
    ("lora", "idle"), [(LORA, "vision"), (LoraOptions(), "projector and vision|vision and projector")], ids=["lora", "in full"]
)
def test_a_part_whose_adapters_get_no_gradient_is_refused_by_name(
    tiny_model: Path, phantoms: Path, tmp_path: Path, lora: LoraOptions, idle: str
) -> None:
    options = PAPER_LIKE.model_copy(update={"lora": lora})
    policy = load_learner(tiny_model, options)
    part = policy.model.model.vision_tower if idle == "vision" else policy.model.model.multi_modal_projector
    # As the original's vision tower runs.
    part.forward = torch.no_grad()(part.forward)
    with pytest.raises(StllavaError, match=rf"no gradient reaches the part ({idle});"):
        learn(policy, phantoms, options, tmp_path, merge=True)


def test_what_was_learned_goes_into_a_model_that_was_prepared_alike_only() -> None:
    state = learned(adapted(llava(), PAPER_LIKE))
    other = prepare_model(llava().model, PAPER_LIKE)
    take_over(other, state)
    assert all(torch.equal(value, state[name]) for name, value in learned(other).items())
    frozen = PAPER_LIKE.model_copy(update={"learning_rate": RATES.model_copy(update={"vision": 0.0})})
    with pytest.raises(StllavaError, match=r"names are on one side only, such as .*vision"):
        take_over(prepare_model(llava().model, frozen), state)


def test_the_table_says_of_each_part_through_what_it_learns_and_how_many_parameters() -> None:
    policy = llava()
    sizes = dict.fromkeys(PARTS, 0)
    for name, parameter in policy.model.named_parameters():
        sizes[llava_group(name)] += parameter.numel()
    model = prepare_model(policy.model, PAPER_LIKE.model_copy(update={"learning_rate": RATES.model_copy(update={"vision": 0})}))
    head, *rows = [re.split(r" {2,}", line) for line in table(model, PAPER_LIKE)]
    found = {row[0]: dict(zip(head, row, strict=False)) for row in rows}
    assert list(found) == [*PARTS, "all"]
    assert found["language"]["learns"] == "LoRA, rank 4, alpha 12"
    assert found["language"] | {"peak rate": "4.0e-04", "dropout": "0.1"} == found["language"]
    assert found["projector"] | {"learns": "in full", "share": "100.00%"} == found["projector"]
    counted = {group: int(found[group]["parameters"].replace(",", "")) for group in PARTS}
    really = dict.fromkeys(PARTS, 0)
    for name, value in learned(model).items():
        really[llava_group(name)] += value.numel()
    assert counted == really
    assert {group: int(found[group]["of"].replace(",", "")) for group in PARTS} == sizes


def test_a_training_begins_with_the_table(
    tiny_model: Path, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learn(load_learner(tiny_model, PAPER_LIKE), phantoms, PAPER_LIKE, tmp_path, merge=True)
    said = capsys.readouterr().err
    assert re.search(r"language +LoRA, rank 4, alpha 12 .*\n.*\nvision +LoRA, rank 2, alpha 4 ", said)
    assert said.index("vision") < said.index("1/1 steps")


PACKED: Mapping[str, tuple[str, bool]] = {
    "llava packed": ("llava", True),
    "llava unpacked": ("llava", False),
    "smolvlm packed": ("smolvlm", True),
    "smolvlm unpacked": ("smolvlm", False),
}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.radial_gradient("L").resize((48, 40)).convert("RGB").save(tmp_path / "one.png")
    return tmp_path


@pytest.mark.parametrize("name", PACKED)
def test_activations_computed_twice_give_the_same_loss_and_gradients(name: str, picture: Path) -> None:
    family, packs = PACKED[name]
    policy = ARCHITECTURES[family]()
    policy.packs = packs
    # Dropout is on: the second computation must draw what the first drew.
    model = adapted(policy, PAPER_LIKE).train()
    chains = [
        [Segment(f"what organ {word}?", False), Segment(said, True)]
        for word in ("is shown", "is the left one", "has a nodule")
        for said in ("the lung", "no acute finding")
    ]
    text = policy.chat.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}], tokenize=False)
    tree: Tree = build_tree(policy, Prefix(str(text), ("one.png",), picture), chains)
    batch = collate(policy, [tree])
    calls: list[str] = []
    last = last_mlp(policy.model)
    layers = policy.model.get_decoder().layers
    for place, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(lambda *_, place=place: calls.append(f"{place}"))

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        calls.clear()
        torch.manual_seed(1)
        model.zero_grad()
        values = token_log_probabilities(model, batch)
        (values * torch.cos(batch["labels"].float())).sum().backward()
        return values.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    once = step()
    assert sorted(calls) == ["0", "1"]
    with activation_checkpointing(policy.model):
        twice = step()
    assert last is layers[-1].mlp
    assert sorted(calls) == ["0", "0", "1"]
    assert once[1].keys() == twice[1].keys()
    torch.testing.assert_close(twice, once, atol=1e-6, rtol=1e-5)
    step()
    assert sorted(calls) == ["0", "1"]


def test_activations_computed_twice_change_no_weight_of_a_stage(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    found = []
    for again in (False, True):
        options = PAPER_LIKE.model_copy(update={"checkpoint_activations": again})
        policy = load_learner(tiny_model, options)
        learn(policy, phantoms, options, tmp_path / str(again), merge=True)
        found.append(policy.model.state_dict())
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-4)


def test_a_model_without_layers_to_compute_again_is_refused() -> None:
    policy = llava()
    policy.model.get_decoder().layers = nn.ModuleList()
    policy.model.model.vision_tower.encoder.layers = nn.ModuleList()
    with pytest.raises(StllavaError, match="no layers that can be computed again"), activation_checkpointing(policy.model):
        pass


@pytest.mark.parametrize(
    "options",
    [{"lora": {"quantise": "4bit"}}, {"lora": {"quantise": "4bit", "language": {"rank": 4}}, "learning_rate": {"language": 0}}],
    ids=["no rank", "no rate"],
)
def test_weights_of_4_bits_without_adapters_that_learn_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(StllavaError, match=r"lora\.language\.rank and learning_rate\.language above 0"):
        validate(SftOptions, options, source="here")


def test_without_bitsandbytes_4_bits_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(StllavaError, match=r"pip install 'stllava\[quantised\]'"):
        quantise(llava().model, IN_4_BITS)


@with_bitsandbytes
def test_in_4_bits_are_the_layers_under_adapters_and_the_frozen_ones(tiny_model: Path) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    whole = load_policy(tiny_model).model
    linears = {name for name, module in whole.named_modules() if isinstance(module, nn.Linear)}
    for vision, parts in ((LORA.vision, {"language", "vision"}), (AdapterOptions(), {"language"})):
        options = IN_4_BITS.model_copy(update={"lora": IN_4_BITS.lora.model_copy(update={"vision": vision})})
        model = load_learner(tiny_model, options).model
        small = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
        assert small == {name for name in linears if llava_group(name) in parts and name != "lm_head"}
        assert all(model.get_submodule(name).weight.dtype == torch.uint8 for name in small)
        assert table(prepare_model(model, options), options) == table(
            prepare_model(load_policy(tiny_model).model, options), options
        )


@with_bitsandbytes
def test_adapters_trained_on_4_bits_are_merged_into_the_whole_weights(
    tiny_model: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    state: dict[str, Tensor] = {}

    def watched(model: nn.Module, options: SftOptions, *, dtype: torch.dtype) -> nn.Module:
        state.update({plain_name(name): value.clone() for name, value in learned(model).items()})
        return merged(model, options, dtype=dtype)

    monkeypatch.setattr("stllava.training.trainer.merged", watched)
    images, to = phantoms / "images", tmp_path / "sft"
    sft(IN_4_BITS, model=str(tiny_model), conversations=phantoms / "conversations.jsonl", images=images, to=to)
    assert {llava_group(name) for name, there in seen.reached.items() if there and ".lora_B." in name} == {"language", "vision"}
    before, after = load_policy(tiny_model).model.state_dict(), load_policy(to).model.state_dict()
    assert {file.name for file in to.glob("*.safetensors")} == {"model.safetensors"}
    assert {value.dtype for value in load_file(to / "model.safetensors").values()} == {torch.float32}
    for name, value in after.items():
        layer, group = name.removesuffix(".weight"), llava_group(name)
        if f"{layer}.lora_A.{group}.weight" in state:
            a, b = (state[f"{layer}.lora_{factor}.{group}.weight"] for factor in "AB")
            scale = {"language": 3.0, "vision": 2.0}[group]
            torch.testing.assert_close(value, before[name] + scale * (b @ a), atol=1e-7, rtol=1e-5)
        else:
            assert torch.equal(value, state.get(name, before[name]))


@with_bitsandbytes
def test_the_reference_of_a_dpo_on_4_bits_is_the_policy_in_4_bits(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    stage = Stage("pair", tmp_path / "pair", PAPER_LIKE, inputs={}, existing="resume")
    pairs = [
        Preference(
            id=str(index),
            images=(f"unlabelled/{index:05d}.png",),
            prompt=(Message(role="user", content="is there a mass?"),),
            chosen="yes",
            rejected="no",
            margin=1.0,
            lineage=Lineage(question_id="", answers_id="", judgment_id=""),
        )
        for index in range(2)
    ]
    stage.write_records("preferences", pairs)
    stage.finish(counts_in=2, counts_out=2)
    options = DpoOptions(learning_rate=RATES, lora=IN_4_BITS.lora, replay=0, save_steps=0)
    to = tmp_path / "dpo"
    manifest = dpo(options, policy=tiny_model, preferences=tmp_path / "pair", images=phantoms / "images", to=to).manifest
    assert manifest.curves["distance"][0][1] < 1e-3
    assert all(one.policy.endswith(" in 4bit") for one in read_records(to, "references", Reference))
    assert load_policy(to).model.dtype == torch.float32


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RunOptions]:
    def load(name: str) -> RunOptions:
        path = RECIPES / f"{name}.yaml"
        for variable in re.findall(r"\$\{(\w+)\}", path.read_text()):
            monkeypatch.setenv(variable, f"/somewhere/{variable.lower()}")
        return load_recipe(path)

    return load


def test_the_papers_recipe_has_the_papers_values(recipe: Callable[[str], RunOptions]) -> None:
    options = recipe("stllava-med-7b")
    for stage in (options.sft, options.dpo):
        assert stage.lora.language == AdapterOptions(rank=128, alpha=256, dropout=0.05)
        assert stage.lora.vision == AdapterOptions(rank=32, alpha=64, dropout=0.05)
        assert (stage.schedule, stage.warmup, stage.weight_decay) == ("cosine", 0.03, 0)
    assert options.sft.learning_rate == GroupRates(language=2e-4, vision=5e-5, projector=2e-5)
    assert options.dpo.learning_rate == GroupRates(language=5e-6, vision=2e-5, projector=2e-5)
    assert (options.sft.epochs, options.sft.batch_size, options.sft.self_question_ratio) == (3, 128, 0.5)
    assert (options.dpo.epochs, options.dpo.beta, options.dpo.nll, options.dpo.replay) == (1, 0.1, 0, 0)
    assert options.dpo.batch_size * options.ask.questions == pytest.approx(256, abs=2)
    assert (options.ask.questions, options.answer.num_answers, options.rounds) == (5, 2, 1)
    assert options.ask.sampling.model_dump() == {"temperature": 1.2, "top_k": 300, "top_p": 0.95, "max_new_tokens": 300}
    assert options.answer.sampling.model_dump() == {"temperature": 1.2, "top_k": 100, "top_p": 0.95, "max_new_tokens": 1024}
    assert (options.judge.expert, options.judge.chat.temperature) == ("chat", 0.2)


def test_our_recipe_for_a_7b_model_is_anchored(recipe: Callable[[str], RunOptions]) -> None:
    options = recipe("llava-1.5-7b")
    defaults = DpoOptions()
    assert (options.dpo.nll, options.dpo.replay, options.dpo.max_chosen_drop) == (
        defaults.nll,
        defaults.replay,
        defaults.max_chosen_drop,
    )
    assert options.dpo.lora == options.sft.lora
    assert options.answer.num_answers > 2


@with_bitsandbytes
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_quantised_weights_is_refused_before_it_learns(tiny_model: Path, tmp_path: Path) -> None:
    # As the many "…-bnb-4bit" of the Hub: their codes would be learned from as if they were weights.
    small = AutoModelForImageTextToText.from_pretrained(
        tiny_model, quantization_config=BitsAndBytesConfig(load_in_4bit=True), trust_remote_code=False
    )
    small.save_pretrained(tmp_path)
    load_policy(tiny_model).processor.save_pretrained(tmp_path)
    load_policy(tmp_path)
    for options in (PAPER_LIKE, IN_4_BITS, SftOptions()):
        with pytest.raises(StllavaError, match=r"holds quantised weights .* Name the model it was made from"):
            load_learner(tmp_path, options)


QUIET = """
import sys
from pathlib import Path

from stllava.config import SftOptions
from stllava.stages.sft import sft

model, phantoms, to = map(Path, sys.argv[1:])
options = SftOptions.model_validate({"lora": {"language": {"rank": 2}}, "batch_size": 6, "save_steps": 0})
sft(options, model=str(model), conversations=phantoms / "conversations.jsonl", images=phantoms / "images", to=to)
assert "bitsandbytes" in sys.modules
"""


@pytest.mark.slow
@with_bitsandbytes
def test_a_training_hears_nothing_of_bitsandbytes(tiny_model: Path, phantoms: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", QUIET, str(tiny_model), str(phantoms), str(tmp_path / "sft")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    assert not re.search("bitsandbytes|kernel|Failed", ran.stdout + ran.stderr)


def test_no_code_of_the_hub_is_fetched_while_bitsandbytes_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    there = ModuleType("kernels")
    for before in (there, None):
        monkeypatch.delitem(sys.modules, "kernels", raising=False)
        if before is not None:
            monkeypatch.setitem(sys.modules, "kernels", before)
        with no_kernels_of_the_hub(), pytest.raises(ImportError):
            importlib.import_module("kernels")
        assert sys.modules.get("kernels") is before
