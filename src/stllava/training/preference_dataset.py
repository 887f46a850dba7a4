"""Preferences as trees: all questions about an image, each with its answers, in one sequence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from stllava.dropped import Dropped
from stllava.errors import ItemError, StllavaError, TextError
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import REFUSED, RefusedTurnsError, Segment, open_turn, said_in
from stllava.records import Preference
from stllava.tree.forward import Tree, build_tree, collate, longest_chain
from stllava.tree.layout import cut_branches

PairNodes = tuple[int, int]
"""The nodes of a tree that hold a pair's chosen and rejected answer."""


@dataclass
class _AnsweredPrompt:
    """A question's answers and the preferences between them."""

    opening: list[Segment]
    answers: dict[Segment, None]
    pairs: list[tuple[Segment, Segment]]
    preferences: list[Preference]


@dataclass(frozen=True)
class AlteredTree:
    """The chosen answers of a tree behind a black image."""

    tree: Tree
    contrasts: tuple[PairNodes, ...]
    """The node of each chosen answer in the tree with the image, and in this one."""


class PreferenceDataset:
    """What dpo learns from: one tree a set of images, or several where a tree would be too long.

    Preferences that cannot be learned from (unusable image, longer than the context, turns that the chat template refuses)
    are left out and counted in `dropped`. `trees`, `pairs`, `preferences` and `altered` have an entry each for every tree.
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

        With `image_conditional` each has a tree of its chosen answers behind a black image beside it.
        """
        # Both trees of an image are in one forward.
        self.max_tokens = max_tokens // 2 if image_conditional else max_tokens
        self.image_conditional = image_conditional
        self.dropped = Dropped()
        self.trees: list[Tree] = []
        self.pairs: list[tuple[PairNodes, ...]] = []
        self.preferences: list[tuple[Preference, ...]] = []
        self.altered: list[AlteredTree | None] = []
        for prefix, branches in self._group(policy, preferences, images).items():
            self._plant(policy, prefix, list(branches.values()))

    def __len__(self) -> int:
        return len(self.trees)

    def _group(
        self, policy: Policy, preferences: Sequence[Preference], images: Path
    ) -> dict[Prefix, dict[tuple[Segment, ...], _AnsweredPrompt]]:
        """The usable preferences by their images, then by their question."""
        groups: dict[Prefix, dict[tuple[Segment, ...], _AnsweredPrompt]] = {}
        refusal: RefusedTurnsError | None = None
        for preference in preferences:
            try:
                both = ((preference.chosen, True), (preference.rejected, preference.rejected_ended))
                chains = [_chain(policy, preference, answer, ended=ended) for answer, ended in both]
                prefix = Prefix(chains[0][0].text if preference.images else "", preference.images, images)
                tails = [chain[1:] if preference.images else chain for chain in chains]
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
            opening = tails[0][:-1]
            branch = groups.setdefault(prefix, {}).setdefault(tuple(opening), _AnsweredPrompt(opening, {}, [], []))
            branch.answers |= dict.fromkeys((tails[0][-1], tails[1][-1]))
            branch.pairs.append((tails[0][-1], tails[1][-1]))
            branch.preferences.append(preference)
        if not groups and refusal is not None:
            raise refusal
        if not groups:
            raise StllavaError(
                f"none of {len(preferences)} preferences can be learned from ({self.dropped.told()})",
                expected="pairs about usable images, within the model's context",
                remedy="Look at the counts of ask, answer, judge and pair: they say where the pairs were lost.",
            )
        return groups

    def _plant(self, policy: Policy, prefix: Prefix, branches: Sequence[_AnsweredPrompt]) -> None:
        """Build the tree of a set of images, or several, each within the context and the tokens of a forward."""
        lengths = [sum(len(policy.tokens(piece.text)) for piece in (*branch.opening, *branch.answers)) for branch in branches]
        for part in cut_branches(policy.length(prefix), lengths, most=min(policy.context, self.max_tokens)):
            chosen = [branches[index] for index in part]
            tree = build_tree(policy, prefix, [[*branch.opening, answer] for branch in chosen for answer in branch.answers])
            ends = iter([learned[-1] for learned in tree.leaves])
            pairs: list[PairNodes] = []
            for branch in chosen:
                node = {answer: next(ends) for answer in branch.answers}
                pairs += [(node[better], node[worse]) for better, worse in branch.pairs]
            self.trees.append(tree)
            self.pairs.append(tuple(pairs))
            self.altered.append(_altered(policy, tree, pairs, chosen) if self.image_conditional and prefix.images else None)
            self.preferences.append(tuple(preference for branch in chosen for preference in branch.preferences))


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


def _chain(policy: Policy, preference: Preference, answer: str, *, ended: bool) -> list[Segment]:
    """A pair's prompt and one of its answers, which alone is learned, with the end of the turn if it `ended`."""
    turn = open_turn(policy.chat, preference.prompt, images=len(preference.images), speaker=preference.speaker)
    ended = ended or not answer  # Of nothing without an end there is nothing to learn.
    return [*(Segment(piece.text, False) for piece in turn.before), said_in(policy.chat, turn, answer, ended=ended)]
