"""Where each token of a tree stands and what it may see: index arithmetic only, no torch.

A tree is a list of nodes, parents before children. A node's tokens see the tokens of its ancestors and the earlier
tokens of its own; positions restart at each branch behind the parent's last token. Packed so, one sequence gives the
log-probabilities that each root-to-leaf chain would give on its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

ROOT = -1
READ_COST = 16
"""What reading a cached token costs, in units of looking at it: measured by bench/generate.py --widths."""


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
    lengths = [len(node.ids) for node in nodes]
    mask = np.repeat(np.repeat(sees, lengths, axis=1), lengths, axis=0)
    mask &= np.tri(start, dtype=bool)
    none = np.zeros(0, dtype=np.int64)
    targets = [np.asarray(node.ids, dtype=np.int64) for node in nodes if node.learn]
    return Layout(
        ids=np.concatenate([np.asarray(node.ids, dtype=np.int64) for node in nodes]),
        positions=np.concatenate(positions),
        owners=np.repeat(np.arange(len(nodes)), lengths),
        predictors=np.concatenate([none, *predictors]),
        targets=np.concatenate([none, *targets]),
        leaves=np.concatenate([none, *leaves]),
        mask=mask,
    )


@dataclass(frozen=True)
class Span:
    """Tokens of a row that attend together: they see, at most, those of their root and their own."""

    root: tuple[int, int]
    """Where the tokens before it that it may see start and end."""
    own: tuple[int, int]
    """Where the span's tokens start and end."""
    sees_root: bool
    """Whether every one of them sees all of the root."""


def spans(nodes: Sequence[Node], *, least: int, most: int) -> list[Span]:
    """A packed row cut into spans, in order: the roots, and of what stands on them at least `least` tokens together.

    A row is cut only where nothing behind the cut sees what stands between its root and the cut; a root that is one node
    is cut into spans of `most` tokens that see those before, and the last of them takes a rest of fewer than half as many.
    """
    starts = [0]
    units: list[int] = []
    roots: list[int] = []
    for index, node in enumerate(nodes):
        starts.append(starts[-1] + len(node.ids))
        parent = node.parent
        roots.append(index if parent == ROOT else roots[parent])
        units.append(index if parent == ROOT or nodes[parent].parent == ROOT else units[parent])
    cuts = [len(nodes)]
    lowest = len(nodes)
    for index in range(len(nodes) - 1, -1, -1):
        lowest = min(lowest, units[index])
        if lowest >= index:
            cuts.append(index)
    made: list[Span] = []
    for first, end in pairwise(reversed(cuts)):
        own = (starts[first], starts[end])
        if nodes[first].parent == ROOT:
            step = most if end - first == 1 else own[1] - own[0]
            blocks = [*range(own[0], max(own[0] + 1, own[1] - (step - 1) // 2), step), own[1]]
            made += [Span((own[0], start), (start, stop), True) for start, stop in pairwise(blocks)]
            continue
        root = roots[first]
        one_root = all(roots[index] == root for index in range(first, end))
        before = (starts[root], starts[root + 1]) if one_root else (0, own[0])
        last = made[-1]
        if last.root == before and last.own[1] - last.own[0] < least:
            made[-1] = Span(before, (last.own[0], own[1]), last.sees_root and one_root)
        else:
            made.append(Span(before, own, one_root))
    return made


def share_rows(lengths: Sequence[int]) -> list[list[int]]:
    """Which trees share a row as wide as the longest: longest first, each into the first row that has room."""
    width = max(lengths)
    rows: list[list[int]] = []
    room: list[int] = []
    for tree in sorted(range(len(lengths)), key=lambda tree: -lengths[tree]):
        row = next((row for row, left in enumerate(room) if left >= lengths[tree]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(width)
        rows[row].append(tree)
        room[row] -= lengths[tree]
    return rows


def cut_forwards(lengths: Sequence[int], *, most: int, chains: Sequence[int] | None = None) -> list[list[int]]:
    """Trees cut into forwards whose padded rows hold at most `most` tokens, like lengths together.

    Trees share rows; where `chains` says how many chains each tree has, every chain has a row of its own and lengths
    are those of the longest chains. A tree that is larger than `most` has a forward of its own.
    """
    forwards: list[list[int]] = []
    for tree in sorted(range(len(lengths)), key=lambda tree: -lengths[tree]):
        if forwards:
            tried = [*forwards[-1], tree]
            rows = len(share_rows([lengths[one] for one in tried])) if chains is None else sum(chains[one] for one in tried)
            if rows * lengths[tried[0]] <= most:
                forwards[-1].append(tree)
                continue
        forwards.append([tree])
    return forwards


def cut_branches(root: int, lengths: Sequence[int], *, most: int) -> list[list[int]]:
    """A tree's branches, in order, cut into trees of at most `most` tokens, the root's tokens in each; none is cut inside."""
    parts: list[list[int]] = []
    room = 0
    for branch, length in enumerate(lengths):
        if length > room:
            parts.append([])
            room = most - root
        parts[-1].append(branch)
        room -= length
    return parts


def cut_rows(lengths: Sequence[int], *, most: int) -> list[list[int]]:
    """Rows cut into batches of at most `most` tokens, padding included, like lengths together."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= most:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def branches_a_row(root: int, *, new: int) -> int:
    """How many branches of up to `new` tokens should share a row behind `root` tokens.

    With b branches a row, a step reads the root once for b branches, which costs root / b a branch, but each branch
    looks through the tokens of the b - 1 others, about b * new / 2, which costs compute only. The sum is least at the
    root of their ratio.
    """
    return max(1, round(math.sqrt(2 * READ_COST * root / new)))


def share_branches(root: int, prompts: Sequence[int], *, new: int, most: int) -> list[list[int]]:
    """An image's branches, in order, dealt to as few rows as pays and evenly; no row needs more than `most` tokens.

    `root` tokens come before `prompts[i]` tokens of each branch's prompt and `new` tokens that it may say.
    """
    room = max(1, (most - root) // (max(prompts) + new))
    width = min(branches_a_row(root, new=new), room)
    rows = -(-len(prompts) // width)
    ends = [len(prompts) * (row + 1) // rows for row in range(rows)]
    return [list(range(start, end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def depth(nodes: Sequence[Node]) -> int:
    """Tokens of the longest root-to-leaf chain: what must fit into the model's context."""
    ends: list[int] = []
    for node in nodes:
        ends.append(len(node.ids) + (0 if node.parent == ROOT else ends[node.parent]))
    return max(ends)
