"""What an optimizer step of dpo minimises, as a pure function of log-probabilities and counts.

A forward is a batch of `collate_preferences`. M learned tokens in it belong to nodes of trees (`leaf` [M]); P pairs name the
nodes of their chosen and rejected answers (`pairs` [P, 2]), what the reference gives them (`reference` [P, 2], summed
log-probabilities in nats) and how much each counts (`weights` [P]); `replayed` [M] tells which tokens are of replayed
conversations; `contrasts` [C, 2] names the nodes of chosen answers behind their image and behind a black one, with what the
reference gives them (`contrast_reference` [C, 2]).
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stllava.config import DpoOptions
from stllava.training.losses import group_loss, nll, preference_loss


def counts_of(batch: Mapping[str, Tensor]) -> dict[str, float]:
    """What the parts of the objective are divided by: weights of pairs and of tokens in one forward, added up over a step."""
    return {
        "pairs": float(batch["weights"].sum()),
        "chosen_tokens": float(_anchors(batch).sum()),
        "replayed_tokens": float(batch["replayed"].sum()),
        "contrasts": float(len(batch["contrasts"])),
    }


def preference_objective(
    tokens: Tensor, batch: Mapping[str, Tensor], counts: Mapping[str, float], options: DpoOptions
) -> tuple[Tensor, dict[str, float]]:
    """One forward's share of a step's loss, and of its figures.

    The loss is that of the pairs, plus NLL over the chosen answers' tokens, plus NLL over the replayed tokens, plus, where
    chosen answers stand behind a black image too, DPO's loss of preferring them behind their own. A pair's weight
    is that of its loss and of its chosen answer's tokens, of several pairs with one chosen answer the largest.

    Args:
        tokens: [M] log-probabilities of the learned tokens under the policy, in nats.
        batch: The forward.
        counts: `counts_of` all forwards of the step, added up.
        options: The loss and the weights of its parts.
    """
    pairs, leaf, reference, weights = batch["pairs"], batch["leaf"], batch["reference"], batch["weights"]
    nodes = sum_by_leaf(tokens, leaf)
    sums, lengths = nodes[pairs], sum_by_leaf(torch.ones_like(tokens), leaf)[pairs]
    losses = _losses(options, sums, reference, lengths)
    loss = (weights * losses).sum() / counts["pairs"]
    if counts["chosen_tokens"] > 0:
        anchors = _anchors(batch)
        chosen = anchors > 0
        loss = loss + options.nll * nll(anchors[chosen] * tokens[chosen], tokens=counts["chosen_tokens"])
    if counts["replayed_tokens"] > 0:
        loss = loss + options.replay * nll(tokens[batch["replayed"]], tokens=counts["replayed_tokens"])
    if counts["contrasts"] > 0:
        moved = nodes[batch["contrasts"]] - batch["contrast_reference"]
        looks = moved[:, 0] - moved[:, 1]  # How much more each chosen answer gained with its image than with a black one.
        loss = loss - options.image_conditional * logsigmoid(options.beta * looks).sum() / counts["contrasts"]
    rewards = options.beta * (sums.detach() - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    figures = {
        "dpo_loss": losses.detach(),
        "reward_accuracy": (margin > 0).float(),
        "reward_margin": margin,
        "chosen_logp": sums.detach()[:, 0],
        "rejected_logp": sums.detach()[:, 1],
        "chosen_drift": (drift := (sums.detach() - reference) / lengths)[:, 0],
        "distance": drift.abs().mean(dim=1),
    }
    shares = torch.stack([(weights * value).sum() / counts["pairs"] for value in figures.values()]).tolist()
    told = dict(zip(figures, shares, strict=True))
    if counts["contrasts"] > 0:
        told["image_accuracy"] = float((looks.detach() > 0).sum()) / counts["contrasts"]
    return loss, told


def first_loss(options: DpoOptions) -> float:
    """The loss of a pair under a policy that has not moved from its reference."""
    zeros = torch.zeros(1, 2)
    return float(_losses(options, zeros, zeros, zeros))


def _losses(options: DpoOptions, sums: Tensor, reference: Tensor, lengths: Tensor) -> Tensor:
    """[P] The loss of each pair, of [P, 2] log-probabilities of chosen and rejected and their numbers of tokens."""
    four = (*sums.unbind(1), *reference.unbind(1))
    if options.loss == "group":
        return group_loss(*four, clip=options.clip)
    return preference_loss(
        options.loss,
        *four,
        beta=options.beta,
        label_smoothing=options.label_smoothing,
        lengths=lengths.unbind(1) if options.length_normalised else None,
    )


def sum_by_leaf(tokens: Tensor, leaf: Tensor) -> Tensor:
    """Sum of every learned node's values; zero for the other nodes."""
    return tokens.new_zeros(int(leaf.max()) + 1).index_add(0, leaf, tokens)


def _anchors(batch: Mapping[str, Tensor]) -> Tensor:
    """[M] the weight of a token of an answer that is chosen and, where a question has several pairs, never rejected; else 0."""
    leaf, pairs = batch["leaf"], batch["pairs"]
    of_node = batch["weights"].new_zeros(int(leaf.max()) + 1).scatter_reduce(0, pairs[:, 0], batch["weights"], "amax")
    return of_node[leaf] * ~torch.isin(leaf, pairs[:, 1])
