"""The optimizer steps of dpo: which pairs and replayed conversations an epoch brings, cut into forwards, and their loss."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor, nn

from stllava.config import DpoOptions
from stllava.model.load import Policy
from stllava.records import content_id
from stllava.training.collapse import CollapseMonitor
from stllava.training.objective import counts_of, first_loss, preference_objective
from stllava.training.preference_dataset import (
    AlteredTree,
    PairNodes,
    PairsOfTree,
    PreferenceDataset,
    collate_pairs,
    without_pairs,
)
from stllava.training.references import LogProbabilities, References, close_of
from stllava.training.sft_dataset import SftDataset
from stllava.training.step_sharing import Items, StepParts
from stllava.training.trainer import StepCheck, fit
from stllava.tree.forward import Tree, token_log_probabilities


@dataclass(frozen=True)
class PreferenceExample:
    """The pairs about one set of images, and conversations to replay beside them."""

    tree: Tree
    """Every answer once, behind its question."""
    pairs: tuple[PairNodes, ...]
    """The nodes of each pair's chosen and rejected answer."""
    reference: tuple[LogProbabilities, ...]
    """The reference's summed log-probabilities of them."""
    weights: tuple[float, ...]
    """How much each counts."""
    altered: AlteredTree | None
    """The chosen answers behind a black image, where they are learned from too."""
    contrast_reference: tuple[LogProbabilities, ...]
    """The reference's log-probabilities of chosen answers with the image and with the black one."""
    replay: tuple[Tree, ...]
    """Trees of stage 1, learned in the same step."""


@dataclass(frozen=True)
class PreferenceSteps:
    """What `fit` needs to know of dpo: examples by epoch, forwards, counts and loss."""

    policy: Policy
    """What learns, in place."""
    dataset: PreferenceDataset
    """The pairs."""
    references: References
    """What the policy gave their answers before it learned."""
    replayed: SftDataset | None
    """Conversations of stage 1 to replay beside them."""
    options: DpoOptions
    """The loss, the weights of its parts and how much is replayed."""
    seed: int
    """Of the conversations that are drawn for replay."""

    def example(self, index: int, epoch: int) -> PreferenceExample:
        """The pairs of one tree; which conversations are replayed beside them is drawn for each epoch."""
        planted = self.dataset.planted(index)
        return PreferenceExample(
            tree=planted.tree,
            pairs=planted.pairs,
            reference=self.references.values[index],
            weights=tuple(preference.weight for preference in planted.preferences),
            altered=planted.altered,
            contrast_reference=self.references.contrasts[index],
            replay=self._replay(index, epoch),
        )

    def _replay(self, index: int, epoch: int) -> tuple[Tree, ...]:
        """Shuffled conversations dealt in turn, so that each is replayed about as often as any other."""
        if self.replayed is None:
            return ()
        share = self.options.replay_images / self.options.batch_size
        taken = range(int(index * share), int((index + 1) * share))
        deck = _deck(len(self.replayed.groups), content_id(self.seed, epoch))
        return tuple(self.replayed.tree(deck[place % len(deck)], epoch) for place in taken)

    def collate(self, examples: Sequence[PreferenceExample]) -> list[dict[str, Tensor]]:
        """The forwards of one step: trees of pairs and replayed trees, cut at the tokens of a forward."""
        step = self.step
        return step.collate_forwards(self.policy, step.parts(examples))

    @property
    def step(self) -> StepParts[PreferenceExample, PairsOfTree]:
        """What `fit` cuts into forwards: trees of pairs, and replayed trees behind them."""
        return StepParts(
            _parts_of, lambda part: part.tree, lambda parts: collate_pairs(self.policy, parts), self.dataset.max_tokens
        )

    def loss(self, model: nn.Module, batch: dict[str, Tensor], counts: Mapping[str, float]) -> tuple[Tensor, dict[str, float]]:
        """One forward's share of the step's loss and figures."""
        return preference_objective(token_log_probabilities(model, without_pairs(batch)), batch, counts, self.options)

    def monitor(self) -> CollapseMonitor:
        """What stops a training that starts from another reference or collapses."""
        return CollapseMonitor(
            first_loss=first_loss(self.options), close=close_of(self.policy), max_chosen_drop=self.options.max_chosen_drop
        )


def _parts_of(examples: Sequence[PreferenceExample]) -> list[PairsOfTree]:
    pairs = [
        PairsOfTree(each.tree, each.pairs, each.reference, each.weights, each.altered, each.contrast_reference)
        for each in examples
    ]
    return [*pairs, *(PairsOfTree(tree) for example in examples for tree in example.replay)]


def fit_preferences(
    steps: PreferenceSteps, work: Path, *, watch: StepCheck | None = None, merge: bool = True
) -> dict[str, list[tuple[float, float]]]:
    """Train the policy in place on preferences; checkpoints go to `work`. Returns the curves.

    Args:
        steps: What is learned.
        work: Folder of the checkpoints; a whole one in it is resumed.
        watch: Called with every step's figures before the monitor looks at them.
        merge: Merge adapters into the policy's weights at the end.
    """
    monitor = steps.monitor()

    def check(step: int, figures: Mapping[str, float]) -> None:
        if watch is not None:
            watch(step, figures)
        monitor(step, figures)

    return fit(
        steps.policy,
        Items(len(steps.dataset), steps.example),
        step=steps.step,
        count=counts_of,
        loss=steps.loss,
        watch=check,
        options=steps.options,
        seed=steps.seed,
        work=work,
        label="dpo",
        merge=merge,
    )


@lru_cache(maxsize=2)
def _deck(size: int, seed: str) -> tuple[int, ...]:
    deck = list(range(size))
    random.Random(seed).shuffle(deck)
    return tuple(deck)
