"""Five kinds of models: those whose trees can be packed are, the others are computed chain by chain, and all are right."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import torch

from architectures import ARCHITECTURES
from stllava.config import DpoOptions, SamplingOptions
from stllava.model.load import Policy
from stllava.model.prompt import segments
from stllava.model.sampler import Prompt
from stllava.records import Lineage, Message, Preference
from stllava.tree.decode import LocalSampler
from stllava.tree.forward import Tree, collate, path, token_log_probabilities
from stllava.tree.guard import check_packing
from stllava.tree.preferences import Choices

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


def choices(policy: Policy, phantoms: Path) -> Choices:
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
    return Choices(policy, pairs, images=phantoms / "images", lessons=None, options=DpoOptions(nll=0, replay=0), seed=0)


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
    made = choices(policy, phantoms)
    fault = check_packing(policy, made.trees)
    assert (fault is None) == policy.packs == PACKED[family]
    assert fault is None or fault.endswith("which takes longer.")
    made.measure_reference("")
    for tree, pairs, reference in zip(made.trees, made.pairs, made.reference, strict=True):
        chains = {learned[-1]: chain for chain, learned in enumerate(tree.leaves)}
        for nodes, values in zip(pairs, reference, strict=True):
            assert values == pytest.approx([own_way(policy, tree, chains[node]) for node in nodes], abs=1e-4)


def test_a_packed_tree_of_a_model_that_must_not_be_packed_would_be_wrong(family: str, policy: Policy, phantoms: Path) -> None:
    if family == "qwen2_vl":
        pytest.skip("a packed batch lacks what Qwen2-VL asks for, and its forward refuses it")
    made = choices(policy, phantoms)
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
    made = choices(policy, phantoms)
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
