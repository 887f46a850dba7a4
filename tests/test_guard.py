"""Five kinds of models: those whose trees can be packed are, the others are computed chain by chain, and all are right."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BambaConfig,
    FalconH1Config,
    Lfm2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3_5TextConfig,
    Qwen3MoeConfig,
)

from helpers.architectures import ARCHITECTURES, llava_of, text_options, tokenizer_of
from stllava.config import SamplingOptions
from stllava.generation.local_sampler import LocalSampler
from stllava.generation.sampler import Prompt
from stllava.model.load import Policy
from stllava.model.prompt import segments
from stllava.model.small import IMAGE, TEMPLATE
from stllava.records import Lineage, Message, Preference
from stllava.training.preference_dataset import PreferenceDataset
from stllava.training.references import measure_reference
from stllava.tree.forward import Tree, collate, path, token_log_probabilities
from stllava.tree.guard import check_packing, measure_packing
from stllava.tree.layout import ROOT, Node

PACKED = {"llava": True, "smolvlm": True, "qwen2_vl": False, "gemma3": False, "sliding": False}
GREEDY = SamplingOptions(temperature=0.0, max_new_tokens=6)
WARM = SamplingOptions(temperature=1.5, top_k=0, top_p=0.9, max_new_tokens=6)
QUESTIONS = ("is there a nodule?", "where?", "which side is the mass in this image on?")
built = cache(lambda name: ARCHITECTURES[name]())


@pytest.fixture(params=PACKED)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def policy(family: str) -> Policy:
    made: Policy = built(family)
    made.packs = True
    return made


def dataset_of(policy: Policy, phantoms: Path) -> PreferenceDataset:
    pairs = [
        Preference(
            id=f"{index} {number}",
            images=(f"test/0000{index}.png",),
            prompt=(Message(role="user", content=text),),
            chosen="yes, on the left",
            rejected="no",
            margin=1.0,
            lineage=Lineage(question_id="q", answers_id="a", judgment_id="j"),
        )
        for index in range(2)
        for number, text in enumerate(QUESTIONS)
    ]
    return PreferenceDataset(policy, pairs, images=phantoms / "images", max_tokens=16384)


@torch.inference_mode()
def own_way(policy: Policy, tree: Tree, chain: int) -> float:
    """What the model gives a chain's last node, fed as its processor and its own forward would have it."""
    order = path(tree, chain)
    ids = [*policy.encode(tree.prefix).ids, *(token for node in order for token in tree.nodes[node].ids)]
    logits = policy.model(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        **policy.join([policy.encode(tree.prefix)]),
        **policy.kinds([tree.prefix], left=[0], width=len(ids)),
    ).logits[0]
    said = tree.nodes[order[-1]].ids
    values = logits[-len(said) - 1 : -1].log_softmax(dim=-1)
    return float(values[torch.arange(len(said)), torch.tensor(said)].sum())


def test_each_family_is_packed_where_that_is_right_and_scored_as_its_own_forward_does(
    family: str, policy: Policy, phantoms: Path
) -> None:
    made = dataset_of(policy, phantoms)
    fault = check_packing(policy, made.trees)
    assert (fault is None) == policy.packs == PACKED[family]
    assert fault is None or fault.endswith("which takes longer.")
    references = measure_reference(made, policy, weights="")
    for tree, pairs, reference in zip(made.trees, made.pairs, references.values, strict=True):
        chains = {learned[-1]: chain for chain, learned in enumerate(tree.leaves)}
        for nodes, values in zip(pairs, reference, strict=True):
            assert values == pytest.approx([own_way(policy, tree, chains[node]) for node in nodes], abs=1e-4)


def test_a_packed_tree_of_a_model_that_must_not_be_packed_would_be_wrong(family: str, policy: Policy, phantoms: Path) -> None:
    if family == "qwen2_vl":
        pytest.skip("a packed batch lacks what Qwen2-VL asks for, and its forward refuses it")
    made = dataset_of(policy, phantoms)
    batch = collate(policy, made.trees[:1])
    with torch.inference_mode():
        tokens = token_log_probabilities(policy.model, batch)
    packed = float(tokens[batch["leaf"] == made.pairs[0][0][0]].sum())
    assert (abs(packed - own_way(policy, made.trees[0], 0)) < 1e-3) == PACKED[family]


def test_each_family_speaks_as_its_own_generate_and_one_prompt_does_not_touch_another(
    family: str, policy: Policy, phantoms: Path
) -> None:
    sampler = LocalSampler(policy, root=phantoms / "images", tokens=1 << 20)
    prompts = [
        Prompt((Message(role="user", content=text),), (f"test/0000{index}.png",)) for index in (0, 1) for text in QUESTIONS
    ]
    greedy = sampler.complete(prompts, k=1, sampling=GREEDY, seed=0)
    assert policy.packs == PACKED[family]
    assert len(sampler.notes) == (0 if PACKED[family] else 1)
    generate = cast(Callable[..., torch.Tensor], policy.model.generate)
    for one, (said,) in zip(prompts, greedy, strict=True):
        asked = sampler.request(one)
        encoded = policy.encode(asked.prefix)
        ids = torch.tensor([[*encoded.ids, *asked.ids]])
        out = generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=sorted(policy.stop_ids),
            pad_token_id=policy.tokenizer.pad_token_id,
            **policy.join([encoded]),
            **policy.kinds([asked.prefix], left=[0], width=ids.shape[1]),
        )
        assert said.text == str(policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()
    warm = sampler.complete(prompts, k=3, sampling=WARM, seed=4)
    for one, together in zip(prompts, warm, strict=True):
        (alone,) = sampler.complete([one], k=3, sampling=WARM, seed=4)
        assert [said.text for said in alone] == [said.text for said in together]


def test_a_window_that_holds_every_chain_does_not_matter(phantoms: Path) -> None:
    policy = ARCHITECTURES["sliding"]()
    made = dataset_of(policy, phantoms)
    tree = made.trees[0]
    longest = policy.length(tree.prefix) + max(
        sum(len(tree.nodes[n].ids) for n in path(tree, c)) for c in range(len(tree.leaves))
    )
    policy.model.config.get_text_config().sliding_window = longest
    assert check_packing(policy, made.trees) is None
    policy.model.config.get_text_config().sliding_window = longest - 1
    assert "tokens back" in (check_packing(policy, made.trees) or "")


def test_a_chain_that_grows_out_of_the_window_is_found_out_later_too(phantoms: Path) -> None:
    policy = ARCHITECTURES["sliding"]()
    prompts = [Prompt((Message(role="user", content="where?"),), ("test/00000.png",))]
    sampler = LocalSampler(policy, root=phantoms / "images", tokens=1 << 20)
    asked = sampler.request(prompts[0])
    policy.model.config.get_text_config().sliding_window = policy.length(asked.prefix) + len(asked.ids) + 6
    told = []
    for new in (6, 7):
        sampler.complete(prompts, k=1, sampling=GREEDY.model_copy(update={"max_new_tokens": new}), seed=0)
        told.append((policy.packs, len(sampler.notes)))
    assert told == [(True, 0), (False, 1)]
    assert "tokens back" in sampler.notes[0]


def test_the_segments_of_every_family_are_its_templates_own_words(policy: Policy) -> None:
    talk = [Message(role="user", content="where?"), Message(role="assistant", content="left")]
    pieces = segments(policy.chat, talk, images=1)
    assert [piece.learn for piece in pieces if "left" in piece.text] == [True]


ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
LANGUAGES: dict[str, tuple[type[PreTrainedConfig], dict[str, object]]] = {
    "gated delta rule": (
        Qwen3_5TextConfig,
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "rope_parameters": ROPE,
        },
    ),
    "short convolution": (Lfm2Config, {"layer_types": ["conv", "full_attention"]}),
    "Mamba and attention in turn": (BambaConfig, {"attn_layer_indices": [1], **MAMBA}),
    "Mamba beside attention": (FalconH1Config, {"mamba_d_ssm": 64, **MAMBA}),
    "attention": (LlamaConfig, {}),
    "many layers of attention": (LlamaConfig, {"num_hidden_layers": 12}),
    "experts": (Qwen3MoeConfig, {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}),
}
"""Language models, all of attention or with layers that carry a state: in bfloat16 these were within the guard's old limit."""
RIGHT = {"attention", "many layers of attention", "experts"}
PRECISIONS = [torch.float32, torch.bfloat16, torch.float16]


def llava_with(language: str, dtype: torch.dtype) -> Policy:
    """A LLaVA with this language model."""
    kind, options = LANGUAGES[language]
    tokenizer = tokenizer_of(["<s>", "</s>", IMAGE], end="</s>", begin="<s>")
    policy = llava_of(tokenizer, kind(**{**text_options(tokenizer), **options}), spoken=TEMPLATE, seed=8)
    cast(nn.Module, policy.model).to(dtype)
    return policy


def one_prompt(policy: Policy, phantoms: Path) -> LocalSampler:
    """A sampler that has completed one prompt four times."""
    sampler = LocalSampler(policy, root=phantoms / "images", tokens=1 << 16)
    prompt = Prompt((Message(role="user", content="Describe the image."),), ("test/00000.png",))
    sampler.complete([prompt], k=4, sampling=WARM, seed=0)
    return sampler


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("language", LANGUAGES)
def test_layers_that_carry_a_state_are_never_packed_and_attention_is_in_every_precision(
    language: str, dtype: torch.dtype, phantoms: Path
) -> None:
    sampler = one_prompt(llava_with(language, dtype), phantoms)
    assert sampler.policy.packs == (language in RIGHT)
    assert [note.split(" (")[0] for note in sampler.notes] == (
        [] if language in RIGHT else ["Some layers of this model carry a state from token to token"]
    )


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_measured_tells_rounding_from_a_wrong_packing_by_itself(
    language: str, dtype: torch.dtype, phantoms: Path
) -> None:
    policy = llava_with(language, dtype)
    found = measure_packing(policy, dataset_of(policy, phantoms).trees[0])
    assert policy.packs
    if language in RIGHT:
        assert found.fault is None
        assert found.gap < max(1e-5, found.spread)
        assert found.leak == 0
    else:
        assert "one prompt changes what follows another" in (found.fault or "")
        assert found.gap > 3 * found.spread


class Running(nn.Module):
    """Adds to what a layer gives a share of all that came before: no name and no part of it says that it carries a state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, states: Tensor, *given: object, **named: object) -> Tensor:
        output: Tensor = self.layer(states, *given, **named)
        before: Tensor = output.cumsum(dim=1)
        mixed: Tensor = output + 0.05 * before / output.shape[1] ** 0.5
        return mixed


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_one_prompt_is_enough_to_find_a_state_that_nothing_names(dtype: torch.dtype, phantoms: Path) -> None:
    policy = llava_with("attention", dtype)
    layers = policy.model.get_decoder().layers
    layers[0] = Running(layers[0])
    sampler = one_prompt(policy, phantoms)
    assert not policy.packs
    assert "one prompt changes what follows another" in sampler.notes[0]


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_every_family_is_packed_or_not_whatever_the_precision(family: str, dtype: torch.dtype, phantoms: Path) -> None:
    policy = ARCHITECTURES[family]()
    cast(nn.Module, policy.model).to(dtype)
    made = dataset_of(policy, phantoms)
    assert (measure_packing(policy, made.trees[0]).fault is None) == PACKED[family]
    assert (check_packing(policy, made.trees) is None) == PACKED[family]


def test_a_prompt_of_a_single_token_is_compared_as_well(phantoms: Path) -> None:
    policy = llava_with("attention", torch.bfloat16)
    sampler = LocalSampler(policy, root=phantoms / "images", tokens=1 << 16)
    asked = sampler.request(Prompt((Message(role="user", content="Describe the image."),), ("test/00000.png",)))
    tree = Tree(asked.prefix, (Node(asked.ids[-1:], ROOT, False),), ((0,),))
    assert measure_packing(policy, tree).fault is None
    layers = policy.model.get_decoder().layers
    layers[0] = Running(layers[0])
    assert "one prompt changes" in (check_packing(policy, [tree]) or "")
