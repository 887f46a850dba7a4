"""The tree's index arithmetic, against a restatement token by token."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stllava.tree.layout import ROOT, Node, cut_branches, cut_forwards, cut_rows, depth, pack, share_branches, share_rows, spans


@st.composite
def trees(draw: st.DrawFn) -> list[Node]:
    """A tree of up to nine nodes, the first one not learned."""
    nodes = [Node(tuple(draw(st.lists(st.integers(0, 50), min_size=1, max_size=6))), ROOT, False)]
    for index in range(1, draw(st.integers(1, 9))):
        ids = tuple(draw(st.lists(st.integers(0, 50), min_size=1, max_size=6)))
        nodes.append(Node(ids, draw(st.integers(0, index - 1)), draw(st.booleans())))
    return nodes


def path_to(nodes: list[Node], index: int) -> list[int]:
    """The nodes from the root to this one."""
    path = [index]
    while nodes[path[-1]].parent != ROOT:
        path.append(nodes[path[-1]].parent)
    return path[::-1]


@given(trees())
def test_each_token_sees_its_chain_and_nothing_else(nodes: list[Node]) -> None:
    layout = pack(nodes)
    for token, owner in enumerate(layout.owners):
        path = path_to(nodes, int(owner))
        seen = [other for other in range(len(layout.ids)) if layout.owners[other] in path and other <= token]
        assert np.flatnonzero(layout.mask[token]).tolist() == seen
        assert layout.positions[token] == len(seen) - 1


@given(trees())
def test_each_learned_token_is_predicted_by_the_token_before_it_in_its_chain(nodes: list[Node]) -> None:
    layout = pack(nodes)
    expected = []
    for index, node in enumerate(nodes):
        if node.learn:
            chain = [token for token in range(len(layout.ids)) if layout.owners[token] in path_to(nodes, index)]
            own = [place for place, token in enumerate(chain) if layout.owners[token] == index]
            expected += [(chain[place - 1], int(layout.ids[chain[place]]), index) for place in own]
    found = zip(layout.predictors.tolist(), layout.targets.tolist(), layout.leaves.tolist(), strict=True)
    assert list(found) == expected


@st.composite
def rows(draw: st.DrawFn) -> list[Node]:
    """Several trees side by side, as a row holds them."""
    nodes: list[Node] = []
    for tree in draw(st.lists(trees(), min_size=1, max_size=3)):
        start = len(nodes)
        nodes += [Node(node.ids, node.parent + start if node.parent != ROOT else ROOT, node.learn) for node in tree]
    return nodes


@given(rows(), st.integers(0, 20), st.integers(1, 6))
def test_spans_tile_a_row_and_hold_all_that_is_seen(nodes: list[Node], least: int, most: int) -> None:
    layout, made = pack(nodes), spans(nodes, least=least, most=most)
    assert [span.own[0] for span in made] == [0, *(span.own[1] for span in made[:-1])]
    assert made[-1].own[1] == len(layout.ids)
    starts = {span.own[0] for span in made}
    for span in made:
        reach = {*range(*span.root), *range(*span.own)}
        assert span.root[0] == span.root[1] or span.root[0] in starts
        for token in range(*span.own):
            seen = set(np.flatnonzero(layout.mask[token]).tolist())
            assert seen <= reach
            assert not span.sees_root or seen >= {*range(*span.root)}


def test_spans_of_questions_behind_an_image_are_as_small_as_allowed() -> None:
    nodes = [Node((1,) * 10, ROOT, False)]
    for _ in range(4):
        nodes.append(Node((1,) * 3, 0, False))
        nodes += [Node((1,) * 2, len(nodes) - 1, True), Node((1,) * 2, len(nodes) - 1, True)]
    asked = [(10, 17), (17, 24), (24, 31), (31, 38)]
    assert [(span.root, span.own) for span in spans(nodes, least=1, most=99)] == [
        ((0, 0), (0, 10)),
        *(((0, 10), own) for own in asked),
    ]
    assert [span.own for span in spans(nodes, least=8, most=99)] == [(0, 10), (10, 24), (24, 38)]
    assert [(span.root, span.own) for span in spans(nodes, least=99, most=4)] == [
        ((0, 0), (0, 4)),
        ((0, 4), (4, 8)),
        ((0, 8), (8, 10)),
        ((0, 10), (10, 38)),
    ]
    assert all(span.sees_root for span in spans(nodes, least=1, most=4))


@given(trees())
def test_depth_is_the_longest_chain(nodes: list[Node]) -> None:
    chains = (sum(len(nodes[step].ids) for step in path_to(nodes, index)) for index in range(len(nodes)))
    assert depth(nodes) == max(chains)


some_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=14)


def flat(parts: list[list[int]]) -> list[int]:
    """Everything in the parts."""
    return [index for part in parts for index in part]


@given(lengths=some_lengths, most=st.integers(1, 120), by_chain=st.booleans())
def test_forwards_hold_every_tree_once_and_no_more_tokens_than_allowed(lengths: list[int], most: int, by_chain: bool) -> None:
    chains = [1 + length % 3 for length in lengths] if by_chain else None
    cut = cut_forwards(lengths, most=most, chains=chains)
    assert sorted(flat(cut)) == list(range(len(lengths)))
    for part in cut:
        own = [lengths[tree] for tree in part]
        rows = len(share_rows(own)) if chains is None else sum(chains[tree] for tree in part)
        assert rows * max(own) <= most or len(part) == 1


@given(root=st.integers(0, 30), lengths=some_lengths, most=st.integers(1, 150))
def test_a_tree_is_cut_between_questions_only(root: int, lengths: list[int], most: int) -> None:
    cut = cut_branches(root, lengths, most=most)
    assert flat(cut) == list(range(len(lengths)))
    for part in cut:
        assert root + sum(lengths[branch] for branch in part) <= most or len(part) == 1
    for part, after in pairwise(cut):
        assert root + sum(lengths[branch] for branch in (*part, after[0])) > most


@given(root=st.integers(0, 600), prompts=some_lengths, new=st.integers(1, 60), most=st.integers(1, 3000))
def test_branches_are_dealt_evenly_to_rows_within_the_budget(root: int, prompts: list[int], new: int, most: int) -> None:
    rows = share_branches(root, prompts, new=new, most=most)
    assert flat(rows) == list(range(len(prompts)))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    for row in rows:
        assert root + sum(prompts[branch] + new for branch in row) <= most or len(row) == 1


@given(lengths=some_lengths, most=st.integers(1, 120))
def test_batches_of_rows_stay_within_the_budget(lengths: list[int], most: int) -> None:
    cut = cut_rows(lengths, most=most)
    assert sorted(flat(cut)) == list(range(len(lengths)))
    assert all(len(part) * max(lengths[row] for row in part) <= most or len(part) == 1 for part in cut)


@pytest.mark.parametrize(
    ("nodes", "fault"),
    [
        ([Node((), ROOT, False)], "no tokens"),
        ([Node((1,), 0, False)], "before its parent"),
        ([Node((1,), ROOT, True)], "nothing stands before"),
    ],
    ids=["empty node", "parent behind", "learned root"],
)
def test_a_tree_that_cannot_be_laid_out_is_refused(nodes: list[Node], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        pack(nodes)
