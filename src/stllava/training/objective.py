"""What an optimizer step of dpo minimises, as a pure function of log-probabilities and counts.

A forward is a batch of `collate_preferences`. M learned tokens in it belong to nodes of trees (`leaf` [M]); P pairs name the
nodes of their chosen and rejected answers (`pairs` [P, 2]) and what the reference gives them (`reference` [P, 2], summed
log-probabilities in nats); `replayed` [M] tells which tokens are of replayed conversations.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stllava.config import DpoOptions
from stllava.training.losses import nll, preference_loss


def counts_of(batch: Mapping[str, Tensor]) -> dict[str, float]:
    """What the parts of the objective are divided by: the pairs and tokens of one forward, to be added up over a step."""
    return {
        "pairs": float(len(batch["pairs"])),
        "chosen_tokens": float(_anchored(batch).sum()),
        "replayed_tokens": float(batch["replayed"].sum()),
    }


def preference_objective(
    tokens: Tensor, batch: Mapping[str, Tensor], counts: Mapping[str, float], options: DpoOptions
) -> tuple[Tensor, dict[str, float]]:
    """One forward's share of a step's loss, and of its figures.

    The loss is that of the pairs, plus NLL over the chosen answers' tokens, plus NLL over the replayed tokens.

    Args:
        tokens: [M] log-probabilities of the learned tokens under the policy, in nats.
        batch: The forward.
        counts: `counts_of` all forwards of the step, added up.
        options: The loss and the weights of its parts.
    """
    pairs, leaf, reference = batch["pairs"], batch["leaf"], batch["reference"]
    sums, lengths = sum_by_leaf(tokens, leaf)[pairs], sum_by_leaf(torch.ones_like(tokens), leaf)[pairs]
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


def first_loss(options: DpoOptions) -> float:
    """The loss of a pair under a policy that has not moved from its reference."""
    zeros = torch.zeros(4, 1)
    return float(preference_loss(options.loss, *zeros, beta=options.beta, label_smoothing=options.label_smoothing))


def sum_by_leaf(tokens: Tensor, leaf: Tensor) -> Tensor:
    """Sum of every learned node's values; zero for the other nodes."""
    return tokens.new_zeros(int(leaf.max()) + 1).index_add(0, leaf, tokens)


def _anchored(batch: Mapping[str, Tensor]) -> Tensor:
    """[M] whether a token is of an answer that is chosen and, where a question has several pairs, never rejected."""
    leaf, pairs = batch["leaf"], batch["pairs"]
    return torch.isin(leaf, pairs[:, 0]) & ~torch.isin(leaf, pairs[:, 1])
