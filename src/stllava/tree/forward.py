"""Log-probabilities of every learned token of many trees from one forward, on any causal vision-language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stllava.model.load import Policy, Prefix
from stllava.model.prompt import Segment
from stllava.tree.layout import ROOT, Node, depth, pack


@dataclass(frozen=True)
class Tree:
    """Everything that is read or learned about one set of images."""

    prefix: Prefix
    """The images and what stands before them."""
    nodes: tuple[Node, ...]
    """What follows the prefix; ROOT as parent means the prefix."""
    leaves: tuple[tuple[int, ...], ...]
    """For each chain the tree was grown from, the indices of its learned nodes."""


def grow(policy: Policy, prefix: Prefix, chains: Sequence[Sequence[Segment]]) -> Tree:
    """A tree of chains of segments behind one prefix; equal beginnings that are not learned are shared."""
    nodes: list[Node] = []
    shared: dict[tuple[int, str], int] = {}
    leaves: list[tuple[int, ...]] = []
    for chain in chains:
        parent, learned = ROOT, []
        for piece in chain:
            index = shared.get((parent, piece.text)) if not piece.learn else None
            if index is None:
                index = len(nodes)
                nodes.append(Node(policy.tokens(piece.text), parent, piece.learn))
                if not piece.learn:
                    shared[parent, piece.text] = index
            if piece.learn:
                learned.append(index)
            parent = index
        leaves.append(tuple(learned))
    return Tree(prefix, tuple(nodes), tuple(leaves))


def split_chains(tree: Tree) -> list[Tree]:
    """The tree's chains as trees of their own: what tools without packing compute, one sequence a chain."""
    chains = []
    for learned in tree.leaves:
        path = [learned[-1]]
        while tree.nodes[path[-1]].parent != ROOT:
            path.append(tree.nodes[path[-1]].parent)
        order = path[::-1]
        nodes = tuple(
            Node(tree.nodes[index].ids, step - 1 if step else ROOT, tree.nodes[index].learn) for step, index in enumerate(order)
        )
        chains.append(Tree(tree.prefix, nodes, (tuple(order.index(index) for index in learned),)))
    return chains


def longest(policy: Policy, tree: Tree) -> int:
    """Tokens of the tree's longest chain, prefix included."""
    return depth(_rooted(policy, tree))


def collate(policy: Policy, trees: Sequence[Tree]) -> dict[str, Tensor]:
    """One batch: trees share rows of the longest tree's N tokens, and it is noted where to read M learned tokens.

    Keys beside the image inputs: input_ids, position_ids [R, N]; attention_mask [R, 1, N, N], added to the scores;
    logits_to_keep [U], the columns whose output is needed; rows, columns, labels, leaf, tree [M]: of each learned token
    its row, its predictor's place in logits_to_keep, its id, its node counted through the batch, and its tree;
    leaf_starts [B]: the number of each tree's first node.
    """
    rooted = [_rooted(policy, tree) for tree in trees]
    lengths = [sum(len(node.ids) for node in nodes) for nodes in rooted]
    rows = share_rows(lengths)
    layouts = [pack(_side_by_side([rooted[tree] for tree in row])) for row in rows]
    width = max(lengths)
    ids = np.full((len(rows), width), policy.tokenizer.pad_token_id or 0, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    mask = np.zeros((len(rows), 1, width, width), dtype=bool)
    mask[:, 0, np.arange(width), np.arange(width)] = True
    for place, layout in enumerate(layouts):
        length = len(layout.ids)
        ids[place, :length] = layout.ids
        positions[place, :length] = layout.positions
        mask[place, 0, :length, :length] = layout.mask
    keep, columns = np.unique(np.concatenate([layout.predictors for layout in layouts]), return_inverse=True)
    order = [tree for row in rows for tree in row]
    sizes = [len(rooted[tree]) for tree in order]
    starts = np.zeros(len(trees), dtype=np.int64)
    starts[order] = np.cumsum([0, *sizes[:-1]])
    first = np.cumsum([0, *(sum(len(rooted[tree]) for tree in row) for row in rows[:-1])])
    leaf = np.concatenate([layout.leaves + start for layout, start in zip(layouts, first, strict=True)])
    dtype = policy.model.dtype
    scores = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~torch.from_numpy(mask), torch.finfo(dtype).min)
    return {
        **policy.join([policy.encode(trees[tree].prefix) for tree in order if trees[tree].prefix.images]),
        "input_ids": torch.from_numpy(ids),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": scores,
        "logits_to_keep": torch.from_numpy(keep),
        "rows": torch.from_numpy(np.repeat(np.arange(len(rows)), [len(layout.targets) for layout in layouts])),
        "columns": torch.from_numpy(columns),
        "labels": torch.from_numpy(np.concatenate([layout.targets for layout in layouts])),
        "leaf": torch.from_numpy(leaf),
        "tree": torch.from_numpy(np.repeat(order, sizes)[leaf]),
        "leaf_starts": torch.from_numpy(starts),
    }


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


def _side_by_side(trees: Sequence[Sequence[Node]]) -> list[Node]:
    """The nodes of several trees as one list, each tree with a root of its own."""
    nodes: list[Node] = []
    for tree in trees:
        start = len(nodes)
        nodes += [Node(node.ids, node.parent + start if node.parent != ROOT else ROOT, node.learn) for node in tree]
    return nodes


READ_ONLY = frozenset({"rows", "columns", "labels", "leaf", "tree", "leaf_starts"})


def token_log_probabilities(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """[M] log-probability of each learned token of a batch from `collate`, in float32."""
    logits = model(**{name: value for name, value in batch.items() if name not in READ_ONLY}, use_cache=False).logits
    chosen = logits[batch["rows"], batch["columns"]].float()
    return torch.log_softmax(chosen, dim=-1).gather(-1, batch["labels"][:, None])[:, 0]


def _rooted(policy: Policy, tree: Tree) -> list[Node]:
    if not tree.prefix.images:
        return list(tree.nodes)
    root = Node(policy.encode(tree.prefix).ids, ROOT, False)
    return [root, *(Node(node.ids, node.parent + 1, node.learn) for node in tree.nodes)]
