"""Preferences as trees: all questions about an image, each with its chosen and its rejected answer, in one sequence."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from stllava.config import DpoOptions
from stllava.errors import ItemError, StllavaError
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import Segment, segments
from stllava.progress import Progress
from stllava.records import Message, Preference, content_id
from stllava.tree.forward import Tree, collate, grow, longest, token_log_probabilities
from stllava.tree.lessons import Lessons
from stllava.tree.losses import dpo_sigmoid

REFERENCE_IMAGES = 16


@dataclass(frozen=True)
class Choice:
    """The pairs about one set of images, and lessons to replay beside them."""

    tree: Tree
    """Two chains a pair: chosen, then rejected."""
    reference: tuple[tuple[float, float], ...]
    """The reference's summed log-probabilities of chosen and rejected, by pair."""
    replay: tuple[Tree, ...]
    """Stage-1 trees learned in the same forward."""


class Choices:
    """What dpo learns from, one entry a set of images."""

    def __init__(
        self,
        policy: Policy,
        preferences: Sequence[Preference],
        *,
        images: Path,
        lessons: Lessons | None,
        options: DpoOptions,
        seed: int,
    ) -> None:
        self.policy, self.lessons, self.options, self.seed = policy, lessons, options, seed
        self.dropped: Counter[str] = Counter()
        groups: dict[Prefix, list[list[Segment]]] = {}
        for preference in preferences:
            chains = [_chain(policy, preference, answer) for answer in (preference.chosen, preference.rejected)]
            prefix = Prefix(chains[0][0].text if preference.images else "", preference.images, images)
            tails = [chain[1:] if preference.images else chain for chain in chains]
            try:
                fits = longest(policy, grow(policy, prefix, tails)) <= policy.context
            except ItemError as error:
                self.dropped[f"image {error.cause}"] += 1
                continue
            if fits:
                groups.setdefault(prefix, []).extend(tails)
            else:
                self.dropped["longer than the context"] += 1
        self.trees = [grow(policy, prefix, chains) for prefix, chains in groups.items()]
        self.reference: list[tuple[tuple[float, float], ...]] = []
        if not self.trees:
            raise StllavaError(
                f"none of {len(preferences)} preferences can be learned from ({dict(self.dropped)})",
                expected="pairs about usable images, within the model's context",
                remedy="Look at the counts of ask, answer, judge and pair: they say where the pairs were lost.",
            )

    def __len__(self) -> int:
        return len(self.trees)

    def measure_reference(self) -> None:
        """Compute the starting policy's log-probabilities of every answer, once."""
        self.policy.model.eval()
        with Progress("dpo reference", len(self.trees), unit="images") as progress, torch.inference_mode():
            for start in range(0, len(self.trees), REFERENCE_IMAGES):
                trees = self.trees[start : start + REFERENCE_IMAGES]
                batch = {name: value.to(self.policy.device) for name, value in collate(self.policy, trees).items()}
                sums = _sum_by_leaf(token_log_probabilities(self.policy.model, batch), batch["leaf"]).tolist()
                for tree, first in zip(trees, batch["leaf_starts"].tolist(), strict=True):
                    nodes = _answer_nodes(tree, first)
                    self.reference.append(tuple((sums[chosen], sums[rejected]) for chosen, rejected in nodes))
                progress.advance(len(trees))

    def item(self, index: int, epoch: int) -> Choice:
        """The pairs of one set of images; which lessons are replayed beside them is drawn anew each epoch."""
        return Choice(self.trees[index], self.reference[index], self._replay(index, epoch))

    def _replay(self, index: int, epoch: int) -> tuple[Tree, ...]:
        """Shuffled lessons dealt in turn, so that each is replayed about as often as any other."""
        if self.lessons is None:
            return ()
        share = self.options.replay_images / self.options.batch_size
        taken = range(int(index * share), int((index + 1) * share))
        deck = _deck(len(self.lessons.groups), content_id(self.seed, epoch))
        return tuple(self.lessons.tree(deck[place % len(deck)], epoch) for place in taken)

    def collate(self, choices: Sequence[Choice]) -> dict[str, Tensor]:
        """One batch of all trees, with the answers' nodes and reference of P pairs and which tokens are replayed.

        Adds to `collate`'s keys: pairs [P, 2], the nodes of chosen and rejected; reference [P, 2]; replayed [M].
        """
        trees = [choice.tree for choice in choices] + [tree for choice in choices for tree in choice.replay]
        batch = collate(self.policy, trees)
        starts = batch["leaf_starts"].tolist()
        nodes = [node for choice, first in zip(choices, starts, strict=False) for node in _answer_nodes(choice.tree, first)]
        batch["pairs"] = torch.tensor(nodes)
        batch["reference"] = torch.tensor([pair for choice in choices for pair in choice.reference])
        batch["replayed"] = batch["tree"] >= len(choices)
        return batch

    def count(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """What the parts of the loss are divided by."""
        chosen = torch.isin(batch["leaf"], batch["pairs"][:, 0])
        return {
            "pairs": float(len(batch["pairs"])),
            "chosen_tokens": float(chosen.sum()),
            "replayed_tokens": float(batch["replayed"].sum()),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor], counts: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
        """DPO over pairs + NLL over the chosen answers' tokens + NLL over the replayed tokens, and figures to draw."""
        pairs, reference = batch.pop("pairs"), batch.pop("reference")
        replayed = batch.pop("replayed")
        tokens = token_log_probabilities(model, batch)
        sums = _sum_by_leaf(tokens, batch["leaf"])
        chosen, rejected = sums[pairs[:, 0]], sums[pairs[:, 1]]
        ref_chosen, ref_rejected = reference[:, 0], reference[:, 1]
        preference = dpo_sigmoid(chosen, rejected, ref_chosen, ref_rejected, beta=self.options.beta)
        loss = preference.sum() / counts["pairs"]
        if self.options.nll > 0:
            loss = loss - self.options.nll * chosen.sum() / counts["chosen_tokens"]
        if counts["replayed_tokens"] > 0:
            loss = loss - self.options.replay * tokens[replayed].sum() / counts["replayed_tokens"]
        margin = self.options.beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
        figures = {
            "dpo_loss": preference.mean(),
            "reward_accuracy": (margin > 0).float().mean(),
            "reward_margin": margin.mean(),
            "chosen_logp": chosen.mean(),
            "rejected_logp": rejected.mean(),
        }
        return loss, {name: float(value.detach()) for name, value in figures.items()}


@lru_cache(maxsize=2)
def _deck(size: int, seed: str) -> tuple[int, ...]:
    deck = list(range(size))
    random.Random(seed).shuffle(deck)
    return tuple(deck)


def _chain(policy: Policy, preference: Preference, answer: str) -> list[Segment]:
    messages = [*preference.prompt, Message(role="assistant", content=answer)]
    pieces = segments(policy.chat, messages, images=len(preference.images))
    while not pieces[-1].learn:
        pieces.pop()
    return [*(Segment(piece.text, False) for piece in pieces[:-1]), pieces[-1]]


def _sum_by_leaf(tokens: Tensor, leaf: Tensor) -> Tensor:
    """Summed log-probability of every node of the batch that is learned; zero for the others."""
    return tokens.new_zeros(int(leaf.max()) + 1).index_add(0, leaf, tokens)


def _answer_nodes(tree: Tree, first: int) -> list[tuple[int, int]]:
    """The nodes of chosen and rejected of each pair, counted through the batch."""
    offset = first + (1 if tree.prefix.images else 0)
    ends = [learned[-1] + offset for learned in tree.leaves]
    return list(zip(ends[::2], ends[1::2], strict=True))
