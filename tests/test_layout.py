"""The tree's index arithmetic, against a restatement token by token."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stllava.tree.layout import ROOT, Node, depth, pack


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


@given(trees())
def test_depth_is_the_longest_chain(nodes: list[Node]) -> None:
    chains = (sum(len(nodes[step].ids) for step in path_to(nodes, index)) for index in range(len(nodes)))
    assert depth(nodes) == max(chains)


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
