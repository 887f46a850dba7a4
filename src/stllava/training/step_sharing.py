"""An optimizer step shared by several processes: each gets trees of about as many tokens, and all do as many forwards.

Devices that train together wait for each other in every forward and backward. Where one had a forward less, or one without
images while the others compute theirs, all would wait for ever. So a process that has none left repeats a small forward
that does not count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from stllava.model.load import Policy
from stllava.training.processes import ALONE, Processes
from stllava.tree.forward import Tree, computed_tokens, split_into_forwards

Item = TypeVar("Item")
Part = TypeVar("Part")
Batch = dict[str, Tensor]
IDLE = "idle"
"""Key of a forward that keeps step with other processes and is not learned."""


class Forward(NamedTuple):
    """Trees of a step, by index, that are computed together."""

    trees: tuple[int, ...]
    """Which."""
    counts: bool = True
    """Whether they are learned; one that is not keeps step with the other processes."""


def share_step(policy: Policy, trees: Sequence[Tree], *, processes: int, max_tokens: int) -> list[list[Forward]]:
    """The forwards of every process, of at most `max_tokens` tokens each.

    Each process has as many; those of text alone come first, and in the same place all show images or none does. Every tree
    counts in one forward. Which process computes what depends on the trees alone.

    Args:
        policy: The model that computes.
        trees: What is learned in the step.
        processes: How many share it.
        max_tokens: Maximum number of tokens of a forward.
    """
    if processes == 1:
        return [[Forward(tuple(part)) for part in split_into_forwards(policy, trees, most=max_tokens)]]
    work = [computed_tokens(policy, tree) for tree in trees]
    shared: list[list[Forward]] = [[] for _ in range(processes)]
    for shows_images in (False, True):
        members = [index for index, tree in enumerate(trees) if bool(tree.prefix.images) is shows_images]
        if not members:
            continue
        cuts = []
        for group in share_evenly([work[index] for index in members], groups=processes):
            own = [members[place] for place in group]
            parts = split_into_forwards(policy, [trees[index] for index in own], most=max_tokens) if own else []
            cuts.append([Forward(tuple(own[place] for place in part)) for part in parts])
        idle = Forward((min(members, key=lambda index: (work[index], index)),), counts=False)
        most = max(map(len, cuts))
        for forwards, cut in zip(shared, cuts, strict=True):
            forwards += [*cut, *[idle] * (most - len(cut))]
    return shared


def share_evenly(work: Sequence[int], *, groups: int) -> list[list[int]]:
    """Indices in groups of about the same sum: the largest first, each to the group that has the least so far."""
    shared: list[list[int]] = [[] for _ in range(groups)]
    load = [0] * groups
    for index in sorted(range(len(work)), key=lambda index: (-work[index], index)):
        group = min(range(groups), key=lambda group: (load[group], group))
        shared[group].append(index)
        load[group] += work[index]
    return [sorted(group) for group in shared]


class Items(Dataset[Item]):
    """What is learned, one entry a set of images; `at(index, epoch)` may draw differently each epoch."""

    def __init__(self, size: int, at: Callable[[int, int], Item]) -> None:
        self.size, self.at, self.epoch = size, at, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Item:
        return self.at(index, self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch, after a resume too."""
        self.epoch = epoch


@dataclass(frozen=True)
class StepParts(Generic[Item, Part]):
    """How an optimizer step's items become forwards."""

    parts: Callable[[Sequence[Item]], list[Part]]
    """The trees of the items, each with what belongs to it."""
    tree_of: Callable[[Part], Tree]
    """A part's tree."""
    collate: Callable[[Sequence[Part]], Batch]
    """One forward of some parts."""
    max_tokens: int
    """Maximum number of tokens of a forward."""

    def collate_forwards(self, policy: Policy, parts: Sequence[Part], processes: Processes = ALONE) -> list[Batch]:
        """The forwards of this process; one that does not count has the key `idle`."""
        shared = share_step(policy, list(map(self.tree_of, parts)), processes=processes.count, max_tokens=self.max_tokens)
        return [
            self.collate([parts[index] for index in forward.trees]) | ({} if forward.counts else {IDLE: torch.ones(1)})
            for forward in shared[processes.index]
        ]
