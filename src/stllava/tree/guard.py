"""Guards: whether a model can be packed, and whether learning from preferences goes where it should.

Packing is tried on the model itself, for not every architecture computes a tree as it does a chain: positions along
several axes, windows shorter than a chain, and attention that runs both ways among image tokens make a packed sequence
another input than the chains it stands for. Such a model is used unpacked: slower, and right.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from math import inf

import torch

from stllava.errors import CollapseError, StllavaError
from stllava.model.load import Policy
from stllava.tree.forward import Tree, collate, longest, some_chains, token_log_probabilities

CHAINS = 2
CLOSE = {torch.float32: 1e-3}
CLOSE_IN_HALF = 5e-2
"""Nats a token, on average: bfloat16 rounds sums of another order differently."""


WINDOW = 10
"""Steps whose mean is looked at for signs of a collapse."""
GOOD, FLIPPED = 0.7, 0.5


class Watch:
    """Stops learning from preferences that starts from another reference, or under which chosen answers die out."""

    def __init__(self, *, first_loss: float, close: float, collapse: float) -> None:
        """Expect `first_loss` and answers that moved less than `close` at first; `collapse` is in nats a token."""
        self.first_loss, self.close, self.collapse = first_loss, close, collapse
        self.drifts: deque[float] = deque(maxlen=WINDOW)
        self.accuracies: deque[float] = deque(maxlen=WINDOW)
        self.best = -inf

    def __call__(self, step: int, figures: Mapping[str, float]) -> None:
        """Look at the figures of a step; raises StllavaError when it must not go on."""
        if step == 0 and figures["distance"] > self.close:
            raise StllavaError(
                f"the first loss is {figures['dpo_loss']:.4f}: answers are {figures['distance']:.2g} nats a token from the "
                "reference before anything was learned",
                expected=f"the reference to be the starting policy, and so a first loss of {self.first_loss:.4f}",
                remedy="Start from the policy that the reference was measured on; switch dropout off in its configuration.",
            )
        self.drifts.append(figures["chosen_drift"])
        self.accuracies.append(figures["reward_accuracy"])
        if len(self.drifts) < WINDOW or self.collapse == 0:
            return
        drift, accuracy = (sum(values) / WINDOW for values in (self.drifts, self.accuracies))
        self.best = max(self.best, accuracy)
        if drift < -self.collapse:
            raise CollapseError(
                f"after {step + 1} steps chosen answers are {-drift:.1f} nats a token less likely than under the reference",
                expected=f"a fall of {self.collapse:g} at most",
                remedy="Anchor them: a higher nll or replay, a lower learning rate, fewer epochs.",
            )
        if self.best >= GOOD and accuracy < FLIPPED:
            raise CollapseError(
                f"after {step + 1} steps {accuracy:.0%} of the pairs are ranked rightly, and it was {self.best:.0%}",
                expected="a ranking that does not turn round",
                remedy="Use a lower learning rate or fewer epochs.",
            )


def check_packing(policy: Policy, trees: Sequence[Tree]) -> str | None:
    """Score a few chains of the longest tree packed and unpacked; where they differ, do not pack. Returns why not."""
    if not policy.packs:
        return None
    tree = max(trees, key=lambda tree: longest(policy, tree))
    far = check_reach(policy, longest(policy, tree))
    return far or _unpack(policy, _kinds(policy, tree) or _difference(policy, some_chains(tree, CHAINS)))


def check_reach(policy: Policy, length: int) -> str | None:
    """Do not pack where a window is narrower than a chain of `length` tokens; within it every token is seen."""
    config = policy.model.config.get_text_config().to_dict()
    kinds = config.get("layer_types")
    window: int | None = config.get("sliding_window") or config.get("attention_chunk_size")
    slides = kinds is None or any(kind != "full_attention" for kind in kinds)
    narrow = policy.packs and window is not None and slides and length > window
    return _unpack(policy, f"This model sees {window} tokens back in some layers and has {length} to see" if narrow else None)


def _unpack(policy: Policy, fault: str | None) -> str | None:
    """Pack no more if there is a fault; returns the sentence that says so."""
    if fault is None:
        return None
    policy.packs = False
    return f"{fault}: every answer is computed as a sequence of its own, which takes longer."


def _kinds(policy: Policy, tree: Tree) -> str | None:
    """A model that asks what each token is masks or numbers image tokens in its own way."""
    asked = sorted(policy.encode(tree.prefix).kinds) if tree.prefix.images else []
    return f"This model masks or numbers image tokens in its own way ({', '.join(asked)})" if asked else None


@torch.inference_mode()
def _difference(policy: Policy, tree: Tree) -> str | None:
    """How far the packed log-probabilities are from those of chains computed alone, if too far."""
    policy.model.eval()
    found = []
    for packs in (True, False):
        policy.packs = packs
        batch = {name: value.to(policy.device) for name, value in collate(policy, [tree]).items()}
        try:
            values = token_log_probabilities(policy.model, batch)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if not packs or isinstance(error, torch.OutOfMemoryError):
                raise
            return f"This model does not take packed trees ({' '.join(str(error).split())[:200]})"
        order = torch.argsort(batch["leaf"], stable=True)
        found.append(values[order])
    policy.packs = True
    gap = float((found[0] - found[1]).abs().mean())
    close = CLOSE.get(policy.model.dtype, CLOSE_IN_HALF)
    if gap <= close:
        return None
    return f"Packed and unpacked log-probabilities of this model differ by {gap:.2g} nats a token, more than {close:.2g}"
