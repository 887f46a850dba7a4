"""One packed forward gives what each chain gives on its own."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stllava.data.conversations import read_conversations
from stllava.model.load import Policy, Prefix, load_policy
from stllava.model.prompt import Segment
from stllava.training.sft_dataset import SftDataset
from stllava.tree.forward import (
    TokenLogProbability,
    Tree,
    build_tree,
    collate,
    longest_chain,
    path,
    split_into_forwards,
    token_log_probabilities,
)
from stllava.tree.layout import share_rows


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return load_policy(tiny_model)


@pytest.fixture
def trees(policy: Policy, phantoms: Path) -> list[Tree]:
    read, _ = read_conversations(phantoms / "conversations.jsonl")
    lessons = SftDataset(policy, read, images=phantoms / "images", self_question_ratio=0.5, seed=1, max_tokens=512)
    return [lessons.tree(index, 0) for index in range(4)]


def score(policy: Policy, trees: Sequence[Tree], *, packs: bool, most: int = 1 << 20) -> tuple[list[Tensor], Tensor]:
    """Each tree's learned log-probabilities, node by node, and the gradient of their weighted sum as one vector."""
    policy.packs = packs
    policy.model.zero_grad()
    values: dict[int, Tensor] = {}
    for part in split_into_forwards(policy, trees, most=most):
        batch = collate(policy, [trees[index] for index in part])
        tokens = token_log_probabilities(policy.model, batch)
        weights = torch.cos(batch["labels"].float())
        (tokens * weights).sum().backward()
        first = 0
        for index in part:
            end = first + len(trees[index].nodes)
            own = (first <= batch["leaf"]) & (batch["leaf"] < end)
            values[index] = tokens.detach()[own][batch["leaf"][own].argsort(stable=True)]
            first = end
    policy.packs = True
    gradients = [parameter.grad.flatten() for parameter in policy.model.parameters() if parameter.grad is not None]
    return [values[index] for index in range(len(trees))], torch.cat(gradients)


def assert_same(one: tuple[list[Tensor], Tensor], other: tuple[list[Tensor], Tensor]) -> None:
    for mine, its in zip(one[0], other[0], strict=True):
        torch.testing.assert_close(mine, its, atol=1e-4, rtol=0)
    assert float((one[1] - other[1]).norm() / other[1].norm()) < 1e-5


def test_packed_and_unpacked_log_probabilities_and_gradients_are_equal(policy: Policy, trees: list[Tree]) -> None:
    assert_same(score(policy, trees, packs=True), score(policy, trees, packs=False))


@cache
def kept(folder: Path) -> Policy:
    return load_policy(folder)


WORDS = ["nodule", "mass", "left", "right", "upper", "is", "there", "a", "no", "what", "side"]
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=7)
said = st.lists(words.map(" ".join), min_size=1, max_size=4, unique=True)


@settings(max_examples=25)
@given(asked=st.lists(st.tuples(words.map(" ".join), said), min_size=1, max_size=4), data=st.data())
def test_random_trees_are_scored_as_their_chains_in_any_order_of_questions(
    tiny_model: Path, phantoms: Path, asked: list[tuple[str, list[str]]], data: st.DataObject
) -> None:
    policy = kept(tiny_model)
    prefix = Prefix("<|user|><image>", ("test/00000.png",), phantoms / "images")

    def planted(questions: Sequence[tuple[str, list[str]]]) -> Tree:
        chains = [
            [Segment(f" {text}?<|end|><|assistant|>", False), Segment(f"{answer}<|end|>", True)]
            for text, answers in questions
            for answer in answers
        ]
        return build_tree(policy, prefix, chains)

    packed = score(policy, [planted(asked)], packs=True)
    assert_same(packed, score(policy, [planted(asked)], packs=False))
    order = data.draw(st.permutations(range(len(asked))))
    moved, gradient = score(policy, [planted([asked[index] for index in order])], packs=True)
    assert float((gradient - packed[1]).norm() / packed[1].norm()) < 1e-5
    torch.testing.assert_close(moved[0].sort().values, packed[0][0].sort().values, atol=1e-4, rtol=0)


def test_forwards_of_few_tokens_give_what_one_forward_gives(policy: Policy, trees: list[Tree]) -> None:
    whole = score(policy, trees, packs=True)
    for most in (300, 600, 1000):
        assert len(split_into_forwards(policy, trees, most=most)) > 1
        assert_same(score(policy, trees, packs=True, most=most), whole)
        assert_same(score(policy, trees, packs=False, most=most), whole)


def test_trees_that_share_a_row_give_what_they_give_alone(policy: Policy, trees: list[Tree]) -> None:
    small = [Tree(tree.prefix, tree.nodes[: learned[-1] + 1], (learned,)) for tree in trees for learned in tree.leaves[:1]]
    mixed = [trees[0], *small, trees[2]]
    assert len(collate(policy, mixed)["input_ids"]) < len(mixed)
    together, _ = score(policy, mixed, packs=True)
    for tree, values in zip(mixed, together, strict=True):
        torch.testing.assert_close(score(policy, [tree], packs=True)[0][0], values, atol=1e-5, rtol=1e-5)


def test_of_the_last_layer_is_computed_where_something_is_learned_what_only_that_needs(
    policy: Policy, trees: list[Tree]
) -> None:
    layer = list(policy.model.get_decoder().get_submodule("layers").children())[-1]
    seen: dict[str, int] = {}
    names = ("mlp.down_proj", "self_attn.q_proj", "self_attn.o_proj", "self_attn.k_proj")

    def look(name: str) -> Callable[..., None]:
        return lambda *given: seen.update({name: given[1][0].shape[1]})

    hooks = [layer.get_submodule(name).register_forward_hook(look(name)) for name in names]
    batch = collate(policy, trees)
    token_log_probabilities(policy.model, batch)
    for hook in hooks:
        hook.remove()
    places = set(zip(batch["rows"].tolist(), batch["columns"].tolist(), strict=True))
    assert seen.pop("self_attn.k_proj") == batch["input_ids"].shape[1]
    assert seen.pop("mlp.down_proj") == len(places) < batch["input_ids"].numel() / 2
    assert set(seen.values()) == {len(places)}


def test_log_probabilities_and_their_gradients_are_those_of_log_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stllava.tree.forward.LOGITS_AT_ONCE", 60)
    logits = torch.randn(11, 20, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.randint(20, (11,)), torch.randn(11)
    ours = TokenLogProbability.apply(logits, labels)  # type: ignore[no-untyped-call]
    (mine,) = torch.autograd.grad((ours * weights).sum(), logits)
    theirs = logits.log_softmax(dim=-1).gather(-1, labels[:, None])[:, 0]
    (its,) = torch.autograd.grad((theirs * weights).sum(), logits)
    torch.testing.assert_close(ours, theirs.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_trees_share_rows_without_overflow_and_none_is_lost(lengths: list[int]) -> None:
    rows = share_rows(lengths)
    assert sorted(tree for row in rows for tree in row) == list(range(len(lengths)))
    assert all(sum(lengths[tree] for tree in row) <= max(lengths) for row in rows)


def test_equal_questions_share_their_tokens_and_answers_never_do(trees: list[Tree]) -> None:
    for tree in trees:
        openings = [(node.parent, node.ids) for node in tree.nodes if not node.learn]
        assert len(set(openings)) == len(openings)
        learned = [index for leaves in tree.leaves for index in leaves]
        assert len(set(learned)) == len(learned) == sum(node.learn for node in tree.nodes)


def test_the_longest_chain_is_what_must_fit_the_context(policy: Policy, trees: list[Tree]) -> None:
    for tree in trees:
        chains = [sum(len(tree.nodes[node].ids) for node in path(tree, chain)) for chain in range(len(tree.leaves))]
        assert longest_chain(policy, tree) == policy.length(tree.prefix) + max(chains)
