"""Where each token of a tree stands and what it may see: index arithmetic only, no torch.

A tree is a list of nodes, parents before children. A node's tokens see the tokens of its ancestors and the earlier
tokens of its own; positions restart at each branch behind the parent's last token. Packed so, one sequence gives the
log-probabilities that each root-to-leaf chain would give on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROOT = -1


@dataclass(frozen=True)
class Node:
    """A run of tokens behind its parent's."""

    ids: tuple[int, ...]
    """Token ids, at least one."""
    parent: int
    """Index of the parent node, or ROOT."""
    learn: bool
    """Whether these tokens are predicted and learned from."""


@dataclass(frozen=True)
class Layout:
    """A packed tree of N tokens, M of them learned."""

    ids: NDArray[np.int64]
    """[N] token ids."""
    positions: NDArray[np.int64]
    """[N] position ids: the depth of each token in tokens."""
    owners: NDArray[np.int64]
    """[N] index of the node each token belongs to."""
    predictors: NDArray[np.int64]
    """[M] index of the token whose output predicts each learned token."""
    targets: NDArray[np.int64]
    """[M] ids of the learned tokens, node by node."""
    leaves: NDArray[np.int64]
    """[M] index of the node each learned token belongs to."""
    mask: NDArray[np.bool_]
    """[N, N] whether the row's token sees the column's."""


def pack(nodes: Sequence[Node]) -> Layout:
    """Lay a tree out as one sequence; the first node may not be learned, for nothing predicts its first token."""
    ends: list[int] = []
    last: list[int] = []
    sees = np.zeros((len(nodes), len(nodes)), dtype=bool)
    positions, predictors, leaves = [], [], []
    start = 0
    for index, node in enumerate(nodes):
        if not node.ids:
            raise ValueError(f"node {index} has no tokens")
        if not ROOT <= node.parent < index:
            raise ValueError(f"node {index} stands before its parent {node.parent}")
        if node.learn and node.parent == ROOT:
            raise ValueError(f"node {index} is learned but nothing stands before it")
        length = len(node.ids)
        first = 0 if node.parent == ROOT else ends[node.parent]
        ends.append(first + length)
        last.append(start + length - 1)
        positions.append(np.arange(first, first + length))
        if node.parent != ROOT:
            sees[index] = sees[node.parent]
        sees[index, index] = True
        if node.learn:
            predictors.append(np.concatenate([[last[node.parent]], np.arange(start, start + length - 1)]))
            leaves.append(np.full(length, index))
        start += length
    owners = np.repeat(np.arange(len(nodes)), [len(node.ids) for node in nodes])
    none = np.zeros(0, dtype=np.int64)
    targets = [np.asarray(node.ids, dtype=np.int64) for node in nodes if node.learn]
    return Layout(
        ids=np.concatenate([np.asarray(node.ids, dtype=np.int64) for node in nodes]),
        positions=np.concatenate(positions),
        owners=owners,
        predictors=np.concatenate([none, *predictors]),
        targets=np.concatenate([none, *targets]),
        leaves=np.concatenate([none, *leaves]),
        mask=sees[owners][:, owners] & np.tri(start, dtype=bool),
    )


def depth(nodes: Sequence[Node]) -> int:
    """Tokens of the longest root-to-leaf chain: what must fit into the model's context."""
    ends: list[int] = []
    for node in nodes:
        ends.append(len(node.ids) + (0 if node.parent == ROOT else ends[node.parent]))
    return max(ends)
