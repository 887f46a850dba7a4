"""One packed forward gives what each chain gives on its own."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stllava.data.conversations import read_conversations
from stllava.model.load import Policy, load_policy
from stllava.tree.forward import Tree, collate, longest, share_rows, split_chains, token_log_probabilities
from stllava.tree.lessons import Lessons


@pytest.fixture
def policy(tiny_model: Path) -> Policy:
    return load_policy(tiny_model)


@pytest.fixture
def trees(policy: Policy, phantoms: Path) -> list[Tree]:
    read, _ = read_conversations(phantoms / "conversations.jsonl")
    lessons = Lessons(policy, read, images=phantoms / "images", sq_r=0.5, seed=1)
    return [lessons.tree(index, 0) for index in range(4)]


def gradients(policy: Policy, batches: list[list[Tree]]) -> tuple[list[float], dict[str, Tensor]]:
    """All learned tokens' log-probabilities, sorted within each tree, and the gradient of their sum."""
    policy.model.zero_grad()
    values: list[float] = []
    for trees in batches:
        tokens = token_log_probabilities(policy.model, collate(policy, trees))
        tokens.sum().backward()
        values += tokens.tolist()
    return values, {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def test_packed_and_unpacked_log_probabilities_and_gradients_are_equal(policy: Policy, trees: list[Tree]) -> None:
    packed, packed_gradients = gradients(policy, [trees])
    chains, chain_gradients = gradients(policy, [split_chains(tree) for tree in trees])
    assert len(packed) == len(chains)
    assert sorted(packed) == pytest.approx(sorted(chains), abs=1e-4)
    one, other = (
        torch.cat([grads[name].flatten() for name in packed_gradients]) for grads in (packed_gradients, chain_gradients)
    )
    assert float((one - other).norm() / one.norm()) < 1e-5


def test_a_batch_gives_what_its_trees_give_alone(policy: Policy, trees: list[Tree]) -> None:
    mixed = [trees[0], *split_chains(trees[1]), trees[2]]
    batch = collate(policy, mixed)
    assert len(batch["input_ids"]) < len(mixed)
    together = token_log_probabilities(policy.model, batch)
    for index, tree in enumerate(mixed):
        alone = collate(policy, [tree])
        values = token_log_probabilities(policy.model, alone)
        torch.testing.assert_close(together[batch["tree"] == index], values, atol=1e-5, rtol=1e-5)
        assert torch.equal(batch["leaf"][batch["tree"] == index] - batch["leaf_starts"][index], alone["leaf"])


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
        widths = [collate(policy, [chain])["input_ids"].shape[1] for chain in split_chains(tree)]
        assert longest(policy, tree) == max(widths)
