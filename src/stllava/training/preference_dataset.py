"""Preferences as trees: all questions about an image, each with its answers, in one sequence."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from stllava.dropped import Dropped
from stllava.errors import ItemError, StllavaError, TextError
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import REFUSED, RefusedTurnsError, Segment, open_turn, said_in
from stllava.records import Preference
from stllava.tree.forward import Tree, build_tree, collate, longest_chain
from stllava.tree.layout import cut_branches

T = TypeVar("T")
PairNodes = tuple[int, int]
"""The nodes of a tree that hold a pair's chosen and rejected answer."""


TREES_KEPT = 2048
"""Trees that stay in memory once they are built; of what is asked for again, no more need be read and split into tokens."""


@dataclass
class _AnsweredPrompt:
    """A question's answers and the preferences between them."""

    opening: list[Segment]
    answers: dict[Segment, None]
    pairs: list[tuple[Segment, Segment]]
    preferences: list[Preference]
    numbers: list[int]
    """Of the preferences, as they were given."""


@dataclass(frozen=True)
class AlteredTree:
    """The chosen answers of a tree behind a black image."""

    tree: Tree
    contrasts: tuple[PairNodes, ...]
    """The node of each chosen answer in the tree with the image, and in this one."""


@dataclass(frozen=True)
class PlantedTree:
    """A tree with what is learned from it."""

    tree: Tree
    """Every answer once, behind its question."""
    pairs: tuple[PairNodes, ...]
    """The nodes of each pair's chosen and rejected answer."""
    preferences: tuple[Preference, ...]
    """The preference that each pair is."""
    altered: AlteredTree | None
    """The chosen answers behind a black image, where they are learned from too."""


class PreferenceDataset:
    """What dpo learns from: one tree a set of images, or several where a tree would be too long.

    Preferences that cannot be learned from (unusable image, longer than the context, turns that the chat template refuses)
    are left out and counted in `dropped`. `trees`, `pairs`, `preferences` and `altered` have an entry each for every tree.

    Of a preference only its number is held: a tree is built from its preferences when it is asked for, and the last
    `TREES_KEPT` of them stay.
    """

    def __init__(
        self,
        policy: Policy,
        preferences: Sequence[Preference],
        *,
        images: Path,
        max_tokens: int,
        image_conditional: bool = False,
    ) -> None:
        """Read preferences about images below `images` into trees of at most `max_tokens` tokens.

        With `image_conditional` each has a tree of its chosen answers behind a black image beside it. The preferences are
        read again as trees are asked for.
        """
        # Both trees of an image are in one forward.
        self.max_tokens = max_tokens // 2 if image_conditional else max_tokens
        self.image_conditional = image_conditional
        self.dropped = Dropped()
        self._policy, self._given = policy, preferences
        self._numbers, self._starts, self._prefix_of = array("q"), array("q", [0]), array("q")
        groups = self._group(images)
        self._prefixes = list(groups)
        for place, numbers in enumerate(groups.values()):
            self._plant(place, numbers)
        self.planted = lru_cache(maxsize=TREES_KEPT)(self._build)
        count = len(self._prefix_of)
        self.trees: Sequence[Tree] = OnDemand(count, lambda index: self.planted(index).tree)
        self.pairs: Sequence[tuple[PairNodes, ...]] = OnDemand(count, lambda index: self.planted(index).pairs)
        self.preferences: Sequence[tuple[Preference, ...]] = OnDemand(count, lambda index: self.planted(index).preferences)
        self.altered: Sequence[AlteredTree | None] = OnDemand(count, lambda index: self.planted(index).altered)

    def __len__(self) -> int:
        return len(self._prefix_of)

    def _group(self, images: Path) -> "dict[Prefix, array[int]]":
        """The numbers of the usable preferences by their images."""
        policy = self._policy
        groups: dict[Prefix, array[int]] = {}
        refusal: RefusedTurnsError | None = None
        for number, preference in enumerate(self._given):
            try:
                prefix, tails = _behind_images(policy, preference, images)
                length = longest_chain(policy, build_tree(policy, prefix, tails))
            except ItemError as error:
                self.dropped.fault(error, of="image")
                continue
            except RefusedTurnsError as error:
                self.dropped.fault(TextError(REFUSED, str(error)))
                refusal = error
                continue
            if length > policy.context:
                detail = f"{preference.id} has {length} tokens, the context {policy.context}"
                self.dropped.fault(TextError("longer than the context", detail))
                continue
            groups.setdefault(prefix, array("q")).append(number)
        if not groups and refusal is not None:
            raise refusal
        if not groups:
            raise StllavaError(
                f"none of {len(self._given)} preferences can be learned from ({self.dropped.told()})",
                expected="pairs about usable images, within the model's context",
                remedy="Look at the counts of ask, answer, judge and pair: they say where the pairs were lost.",
            )
        return groups

    def _plant(self, place: int, numbers: Sequence[int]) -> None:
        """Cut the preferences about a set of images into trees, each within the context and the tokens of a forward."""
        policy, prefix = self._policy, self._prefixes[place]
        branches = self._branches(prefix, numbers)
        lengths = [sum(len(policy.tokens(piece.text)) for piece in (*branch.opening, *branch.answers)) for branch in branches]
        for part in cut_branches(policy.length(prefix), lengths, most=min(policy.context, self.max_tokens)):
            for index in part:
                self._numbers.extend(branches[index].numbers)
            self._starts.append(len(self._numbers))
            self._prefix_of.append(place)

    def _branches(self, prefix: Prefix, numbers: Sequence[int]) -> list[_AnsweredPrompt]:
        """The preferences of these numbers, all about the images of a prefix, by their question."""
        branches: dict[tuple[Segment, ...], _AnsweredPrompt] = {}
        for number in numbers:
            preference = self._given[number]
            _, (better, worse) = _behind_images(self._policy, preference, prefix.root)
            opening = better[:-1]
            branch = branches.setdefault(tuple(opening), _AnsweredPrompt(opening, {}, [], [], []))
            branch.answers |= dict.fromkeys((better[-1], worse[-1]))
            branch.pairs.append((better[-1], worse[-1]))
            branch.preferences.append(preference)
            branch.numbers.append(number)
        return list(branches.values())

    def _build(self, index: int) -> PlantedTree:
        """The tree of this index."""
        policy, prefix = self._policy, self._prefixes[self._prefix_of[index]]
        branches = self._branches(prefix, self._numbers[self._starts[index] : self._starts[index + 1]])
        tree = build_tree(policy, prefix, [[*branch.opening, answer] for branch in branches for answer in branch.answers])
        ends = iter([learned[-1] for learned in tree.leaves])
        pairs: list[PairNodes] = []
        for branch in branches:
            node = {answer: next(ends) for answer in branch.answers}
            pairs += [(node[better], node[worse]) for better, worse in branch.pairs]
        return PlantedTree(
            tree,
            tuple(pairs),
            tuple(preference for branch in branches for preference in branch.preferences),
            _altered(policy, tree, pairs, branches) if self.image_conditional and prefix.images else None,
        )


class OnDemand(Sequence[T]):
    """So many things, each found when it is asked for."""

    def __init__(self, count: int, find: Callable[[int], T]) -> None:
        self._range, self._find = range(count), find

    def __len__(self) -> int:
        return len(self._range)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._find(one) for one in self._range[index]]
        return self._find(self._range[index])


class PairsOfTree(NamedTuple):
    """A tree of one forward with its pairs; a tree without pairs is replayed."""

    tree: Tree
    pairs: Sequence[PairNodes] = ()
    reference: Sequence[tuple[float, float]] = ()
    """What the reference gives chosen and rejected answers, in nats; none while that is being measured."""
    weights: Sequence[float] = ()
    """How much each pair counts."""
    altered: AlteredTree | None = None
    """The chosen answers behind a black image, where they are learned from too."""
    contrast_reference: Sequence[tuple[float, float]] = ()
    """What the reference gives chosen answers with the image and with the black one, in nats."""


def collate_pairs(policy: Policy, parts: Sequence[PairsOfTree]) -> dict[str, Tensor]:
    """One forward of trees, each with its pairs, their reference and weights.

    Adds to the keys of `collate`: pairs [P, 2], the nodes of chosen and rejected; reference [P, 2], in nats; weights [P];
    contrasts [C, 2], the nodes of chosen answers with their image and with a black one; contrast_reference [C, 2];
    replayed [M].
    """
    trees: list[Tree] = []
    pairs: list[PairNodes] = []
    contrasts: list[PairNodes] = []
    replayed: list[bool] = []
    for part in parts:
        start, black = len(replayed), len(replayed) + len(part.tree.nodes)
        trees.append(part.tree)
        pairs += [(chosen + start, rejected + start) for chosen, rejected in part.pairs]
        replayed += [not part.pairs] * len(part.tree.nodes)
        if part.altered is not None:
            trees.append(part.altered.tree)
            contrasts += [(node + start, other + black) for node, other in part.altered.contrasts]
            replayed += [False] * len(part.altered.tree.nodes)
    batch = collate(policy, trees)
    batch["pairs"] = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    batch["reference"] = torch.tensor([pair for part in parts for pair in part.reference]).reshape(-1, 2)
    batch["weights"] = torch.tensor([weight for part in parts for weight in part.weights])
    batch["contrasts"] = torch.tensor(contrasts, dtype=torch.long).reshape(-1, 2)
    batch["contrast_reference"] = torch.tensor([pair for part in parts for pair in part.contrast_reference]).reshape(-1, 2)
    batch["replayed"] = torch.tensor(replayed)[batch["leaf"]]
    return batch


NOT_FOR_THE_MODEL = frozenset({"pairs", "reference", "weights", "contrasts", "contrast_reference", "replayed"})


def without_pairs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model is given of a forward."""
    return {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}


def _altered(policy: Policy, tree: Tree, pairs: Sequence[PairNodes], branches: Sequence[_AnsweredPrompt]) -> AlteredTree:
    """The chosen answers of a tree once more, behind a black image."""
    chains, seeing = [], []
    chosen = iter([pair[0] for pair in pairs])
    for branch in branches:
        nodes = {answer: next(chosen) for answer, _ in branch.pairs}
        chains += [[*branch.opening, answer] for answer in nodes]
        seeing += list(nodes.values())
    black = build_tree(policy, replace(tree.prefix, blank=True), chains)
    return AlteredTree(black, tuple(zip(seeing, [learned[-1] for learned in black.leaves], strict=True)))


def _behind_images(policy: Policy, preference: Preference, images: Path) -> tuple[Prefix, list[list[Segment]]]:
    """What stands before and with a pair's images, and behind them its prompt with the chosen and with the rejected answer.

    The answer alone is learned, with the end of the turn if it came to its end.
    """
    turn = open_turn(policy.chat, preference.prompt, images=len(preference.images), speaker=preference.speaker)
    before = [Segment(piece.text, False) for piece in turn.before]
    both = ((preference.chosen, True), (preference.rejected, preference.rejected_ended))
    # Of nothing without an end there is nothing to learn.
    said = [said_in(policy.chat, turn, answer, ended=ended or not answer) for answer, ended in both]
    if not preference.images:
        return Prefix("", (), images), [[*before, answer] for answer in said]
    return Prefix(before[0].text, preference.images, images), [[*before[1:], answer] for answer in said]
