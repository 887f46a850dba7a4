"""An optimizer step shared by several processes: each gets trees of about as many tokens, and all do as many forwards.

Devices that train together wait for each other in every forward and backward. Where one had a forward less, or one without
images while the others compute theirs, all would wait for ever. So a process that has none left repeats a small forward
that does not count.
"""

from collections.abc import Sequence
from typing import NamedTuple

from stllava.model.load import Policy
from stllava.tree.forward import Tree, computed_tokens, split_into_forwards


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
