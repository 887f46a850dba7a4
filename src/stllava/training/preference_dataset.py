"""Preferences as trees: all questions about an image, each with its answers, in one sequence."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from stllava.config import DpoOptions
from stllava.dropped import Dropped
from stllava.errors import ItemError, StllavaError, TextError
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import REFUSED, RefusedTurnsError, Segment, open_turn, said_in
from stllava.progress import Progress
from stllava.records import Preference, Reference, content_id
from stllava.training.collapse import CollapseMonitor
from stllava.training.losses import nll, preference_loss
from stllava.training.sft_dataset import SftDataset
from stllava.training.trainer import Items, fit
from stllava.tree.forward import (
    Tree,
    build_tree,
    collate,
    longest_chain,
    some_chains,
    split_into_forwards,
    token_log_probabilities,
)
from stllava.tree.layout import cut_branches

Pair = tuple[float, float]
"""Of a chosen and a rejected answer."""
CHECKED_SHARE, MOST_CHECKED, CHECKED_ANSWERS = 8, 8, 2
"""One tree in eight, eight at most, two answers of each, are checked before noted log-probabilities are used."""
CLOSE_PER_TOKEN = {torch.float32: 1e-3}
CLOSE_IN_HALF = 3e-2


@dataclass(frozen=True)
class PreferenceExample:
    """The pairs about one set of images, and lessons to replay beside them."""

    tree: Tree
    """Every answer once, behind its question."""
    pairs: tuple[tuple[int, int], ...]
    """The nodes of each pair's chosen and rejected answer."""
    reference: tuple[Pair, ...]
    """The reference's summed log-probabilities of them."""
    replay: tuple[Tree, ...]
    """Stage-1 trees learned in the same step."""


@dataclass
class _Branch:
    """A question's answers and the preferences between them."""

    opening: list[Segment]
    answers: dict[Segment, None]
    pairs: list[tuple[Segment, Segment]]
    preferences: list[Preference]


class PreferenceDataset:
    """What dpo learns from, one entry a set of images; where a tree would be too long, several."""

    def __init__(
        self,
        policy: Policy,
        preferences: Sequence[Preference],
        *,
        images: Path,
        lessons: SftDataset | None,
        options: DpoOptions,
        seed: int,
    ) -> None:
        self.policy, self.lessons, self.options, self.seed = policy, lessons, options, seed
        zeros = torch.zeros(4, 1)
        first = float(preference_loss(options.loss, *zeros, beta=options.beta, label_smoothing=options.label_smoothing))
        self.close = CLOSE_PER_TOKEN.get(policy.model.dtype, CLOSE_IN_HALF)
        self.watch = CollapseMonitor(first_loss=first, close=self.close, collapse=options.max_chosen_drop)
        self.dropped = Dropped()
        groups: dict[Prefix, dict[tuple[Segment, ...], _Branch]] = {}
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
            branch = groups.setdefault(prefix, {}).setdefault(tuple(opening), _Branch(opening, {}, [], []))
            branch.answers |= dict.fromkeys((tails[0][-1], tails[1][-1]))
            branch.pairs.append((tails[0][-1], tails[1][-1]))
            branch.preferences.append(preference)
        self.trees: list[Tree] = []
        self.pairs: list[tuple[tuple[int, int], ...]] = []
        self.preferences: list[tuple[Preference, ...]] = []
        for prefix, branches in groups.items():
            self._plant(prefix, list(branches.values()))
        self.reference: list[tuple[Pair, ...]] = []
        if not self.trees and refusal is not None:
            raise refusal
        if not self.trees:
            raise StllavaError(
                f"none of {len(preferences)} preferences can be learned from ({self.dropped.told()})",
                expected="pairs about usable images, within the model's context",
                remedy="Look at the counts of ask, answer, judge and pair: they say where the pairs were lost.",
            )

    def _plant(self, prefix: Prefix, branches: Sequence[_Branch]) -> None:
        """Grow the tree of a set of images, or several, each within the context and the tokens of a forward."""
        lengths = [
            sum(len(self.policy.tokens(piece.text)) for piece in (*branch.opening, *branch.answers)) for branch in branches
        ]
        most = min(self.policy.context, self.options.max_tokens_per_forward)
        for part in cut_branches(self.policy.length(prefix), lengths, most=most):
            chosen = [branches[index] for index in part]
            tree = build_tree(self.policy, prefix, [[*one.opening, answer] for one in chosen for answer in one.answers])
            ends = [learned[-1] for learned in tree.leaves]
            nodes, pairs = iter(ends), []
            for branch in chosen:
                node = {answer: next(nodes) for answer in branch.answers}
                pairs += [(node[chosen], node[rejected]) for chosen, rejected in branch.pairs]
            self.trees.append(tree)
            self.pairs.append(tuple(pairs))
            self.preferences.append(tuple(preference for branch in chosen for preference in branch.preferences))

    def __len__(self) -> int:
        return len(self.trees)

    def measure_reference(self, weights: str) -> str:
        """Find the starting policy's log-probabilities of every answer; `weights` is its fingerprint. Returns how.

        Where the policy gave the answers itself, what it noted as it spoke is used, once a sample has been checked; all
        else is computed, each tree once. The first step checks again, for every answer in it (`CollapseMonitor`).
        """
        noted = [_noted(preferences, weights) for preferences in self.preferences]
        known = [index for index, values in enumerate(noted) if values is not None]
        step = max(CHECKED_SHARE, len(known) // MOST_CHECKED)
        gaps = [self._gap(index, noted[index] or ()) for index in known[::step][:MOST_CHECKED]]
        gap = max(gaps, default=0.0)
        used = {index: values for index, values in enumerate(noted) if values is not None} if gap <= self.close else {}
        rest = [index for index in range(len(self.trees)) if index not in used]
        measured = dict(zip(rest, self._measure(rest), strict=True))
        self.reference = [used[index] if index in used else measured[index] for index in range(len(self.trees))]
        if not known:
            return f"The reference's log-probabilities were computed for {len(self.trees)} trees before training."
        if not used:
            return (
                f"The reference's log-probabilities were computed anew: those noted by answer differ by {gap:.2g} per token, "
                f"more than {self.close:.2g}."
            )
        return (
            f"The reference's log-probabilities of {len(used)} of {len(self.trees)} trees are those that answer noted "
            f"(a sample is {gap:.1e} per token off at most); the others were computed before training."
        )

    def references(self, weights: str) -> list[Reference]:
        """The reference of every pair as records."""
        return [
            Reference(id=preference.id, policy=weights, chosen=chosen, rejected=rejected)
            for preferences, values in zip(self.preferences, self.reference, strict=True)
            for preference, (chosen, rejected) in zip(preferences, values, strict=True)
        ]

    def _measure(self, indices: Sequence[int]) -> list[tuple[Pair, ...]]:
        """Log-probabilities of the pairs of some trees under the policy as it is."""
        if not indices:
            return []
        self.policy.model.eval()
        found: dict[int, tuple[Pair, ...]] = {}
        trees = [self.trees[index] for index in indices]
        with Progress("dpo reference", len(trees), unit="images") as progress, torch.inference_mode():
            for part in split_into_forwards(self.policy, trees, most=self.options.max_tokens_per_forward):
                batch = self._forward([(trees[place], self.pairs[indices[place]], ()) for place in part])
                batch = {name: value.to(self.policy.device) for name, value in batch.items()}
                pairs = batch["pairs"]
                values = _sum_by_leaf(token_log_probabilities(self.policy.model, _plain(batch)), batch["leaf"])[pairs].tolist()
                ends = torch.tensor([0, *(len(self.pairs[indices[place]]) for place in part)]).cumsum(0).tolist()
                for place, (start, end) in zip(part, pairwise(ends), strict=True):
                    found[place] = tuple((chosen, rejected) for chosen, rejected in values[start:end])
                progress.advance(len(part))
        return [found[place] for place in range(len(trees))]

    def _gap(self, index: int, noted: Sequence[Pair]) -> float:
        """Largest difference per token between what was noted of a tree's first answers and a packed forward."""
        tree = self.trees[index]
        known = {
            node: value
            for nodes, pair in zip(self.pairs[index], noted, strict=True)
            for node, value in zip(nodes, pair, strict=True)
        }
        few = some_chains(tree, CHECKED_ANSWERS)
        self.policy.model.eval()
        batch = {name: value.to(self.policy.device) for name, value in collate(self.policy, [few]).items()}
        with torch.inference_mode():
            values: list[float] = _sum_by_leaf(token_log_probabilities(self.policy.model, batch), batch["leaf"]).tolist()
        ends = zip(tree.leaves, few.leaves, strict=False)
        return max(abs(values[there[-1]] - known[here[-1]]) / len(tree.nodes[here[-1]].ids) for here, there in ends)

    def item(self, index: int, epoch: int) -> PreferenceExample:
        """The pairs of one set of images; which lessons are replayed beside them is drawn anew each epoch."""
        return PreferenceExample(self.trees[index], self.pairs[index], self.reference[index], self._replay(index, epoch))

    def _replay(self, index: int, epoch: int) -> tuple[Tree, ...]:
        """Shuffled lessons dealt in turn, so that each is replayed about as often as any other."""
        if self.lessons is None:
            return ()
        share = self.options.replay_images / self.options.batch_size
        taken = range(int(index * share), int((index + 1) * share))
        deck = _deck(len(self.lessons.groups), content_id(self.seed, epoch))
        return tuple(self.lessons.tree(deck[place % len(deck)], epoch) for place in taken)

    def collate(self, choices: Sequence[PreferenceExample]) -> list[dict[str, Tensor]]:
        """The forwards of one step: trees of pairs and replayed trees, cut at the tokens of a forward.

        Adds to `collate`'s keys: pairs [P, 2], the nodes of chosen and rejected; reference [P, 2]; replayed [M].
        """
        parts = [(choice.tree, choice.pairs, choice.reference) for choice in choices]
        parts += [(tree, (), ()) for choice in choices for tree in choice.replay]
        trees = [tree for tree, *_ in parts]
        return [
            self._forward([parts[place] for place in part])
            for part in split_into_forwards(self.policy, trees, most=self.options.max_tokens_per_forward)
        ]

    def _forward(self, parts: Sequence[tuple[Tree, Sequence[tuple[int, int]], Sequence[Pair]]]) -> dict[str, Tensor]:
        trees = [tree for tree, *_ in parts]
        batch = collate(self.policy, trees)
        nodes = torch.tensor([len(tree.nodes) for tree in trees])
        first = (nodes.cumsum(0) - nodes).tolist()
        pairs = [(a + start, b + start) for (_, pairs, _), start in zip(parts, first, strict=True) for a, b in pairs]
        replayed = torch.tensor([not pairs for _, pairs, _ in parts]).repeat_interleave(nodes)
        batch["pairs"] = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        batch["reference"] = torch.tensor([pair for *_, reference in parts for pair in reference]).reshape(-1, 2)
        batch["replayed"] = replayed[batch["leaf"]]
        return batch

    def learn(self, work: Path) -> dict[str, list[tuple[float, float]]]:
        """Train the policy in place, once the reference is measured; checkpoints go to `work`. Returns the curves."""
        return fit(
            self.policy,
            Items(len(self), self.item),
            collate=self.collate,
            count=self.count,
            loss=self.loss,
            watch=self.watch,
            options=self.options,
            seed=self.seed,
            work=work,
            label="dpo",
        )

    def count(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """What the parts of the loss are divided by."""
        return {
            "pairs": float(len(batch["pairs"])),
            "chosen_tokens": float(_anchored(batch).sum()),
            "replayed_tokens": float(batch["replayed"].sum()),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor], counts: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
        """This forward's share of the step's loss, and of its figures.

        The loss is that of the pairs + NLL over the chosen answers' tokens + NLL over the replayed tokens.
        """
        options, pairs, leaf, reference = self.options, batch["pairs"], batch["leaf"], batch["reference"]
        tokens = token_log_probabilities(model, _plain(batch))
        sums, lengths = _sum_by_leaf(tokens, leaf)[pairs], _sum_by_leaf(torch.ones_like(tokens), leaf)[pairs]
        losses = preference_loss(
            options.loss,
            *sums.unbind(1),
            *reference.unbind(1),
            beta=options.beta,
            label_smoothing=options.label_smoothing,
            lengths=lengths.unbind(1) if options.length_normalised else None,
        )
        loss = losses.sum() / counts["pairs"]
        if counts["chosen_tokens"] > 0:
            loss = loss + options.nll * nll(tokens[_anchored(batch)], tokens=counts["chosen_tokens"])
        if counts["replayed_tokens"] > 0:
            loss = loss + options.replay * nll(tokens[batch["replayed"]], tokens=counts["replayed_tokens"])
        rewards = options.beta * (sums.detach() - reference)
        margin = rewards[:, 0] - rewards[:, 1]
        figures = {
            "dpo_loss": losses.detach(),
            "reward_accuracy": (margin > 0).float(),
            "reward_margin": margin,
            "chosen_logp": sums.detach()[:, 0],
            "rejected_logp": sums.detach()[:, 1],
            "chosen_drift": (moved := (sums.detach() - reference) / lengths)[:, 0],
            "distance": moved.abs().mean(dim=1),
        }
        shares = torch.stack([value.sum() / counts["pairs"] for value in figures.values()]).tolist()
        return loss, dict(zip(figures, shares, strict=True))


@lru_cache(maxsize=2)
def _deck(size: int, seed: str) -> tuple[int, ...]:
    deck = list(range(size))
    random.Random(seed).shuffle(deck)
    return tuple(deck)


def _chain(policy: Policy, preference: Preference, answer: str, *, ended: bool) -> list[Segment]:
    """A pair's prompt and one of its answers, which alone is learned, with the end of the turn if it `ended`."""
    turn = open_turn(policy.chat, preference.prompt, images=len(preference.images), speaker="assistant")
    ended = ended or not answer  # Of nothing without an end there is nothing to learn.
    return [*(Segment(piece.text, False) for piece in turn.before), said_in(policy.chat, turn, answer, ended=ended)]


def _anchored(batch: Mapping[str, Tensor]) -> Tensor:
    """[M] whether a token is of an answer that is chosen and, where a question has several pairs, never rejected."""
    leaf, pairs = batch["leaf"], batch["pairs"]
    return torch.isin(leaf, pairs[:, 0]) & ~torch.isin(leaf, pairs[:, 1])


def _noted(preferences: Sequence[Preference], weights: str) -> tuple[Pair, ...] | None:
    """What the policy with these weights noted of every pair of a tree, or None where something is missing."""
    found = [preference.reference for preference in preferences]
    if any(one is None or one.policy != weights for one in found):
        return None
    return tuple((one.chosen, one.rejected) for one in found if one is not None)


def _plain(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in ("pairs", "reference", "replayed")}


def _sum_by_leaf(tokens: Tensor, leaf: Tensor) -> Tensor:
    """Sum of every learned node's values; zero for the others."""
    return tokens.new_zeros(int(leaf.max()) + 1).index_add(0, leaf, tokens)
