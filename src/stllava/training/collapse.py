"""Whether learning from preferences goes where it should: it is stopped where chosen answers die out or the ranking flips."""

from collections import deque
from collections.abc import Mapping
from math import inf

from stllava.errors import CollapseError, StllavaError

WINDOW = 10
"""Steps whose mean is looked at for signs of a collapse."""
GOOD, FLIPPED = 0.7, 0.4
"""Shares of pairs ranked rightly: a ranking that was good has turned round when it is worse than chance, not when it is at
chance, where one of hard pairs may well stand for a while."""


class CollapseMonitor:
    """Stops learning from preferences that starts from another reference, or under which chosen answers die out."""

    def __init__(self, *, first_loss: float, close: float, max_chosen_drop: float) -> None:
        """Expect `first_loss`, and answers that moved less than `close`, before anything is learned.

        `close` and `max_chosen_drop` are in nats a token; a drop of 0 never stops.
        """
        self.first_loss, self.close, self.max_chosen_drop = first_loss, close, max_chosen_drop
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
        if len(self.drifts) < WINDOW or self.max_chosen_drop == 0:
            return
        drift, accuracy = (sum(values) / WINDOW for values in (self.drifts, self.accuracies))
        self.best = max(self.best, accuracy)
        if drift < -self.max_chosen_drop:
            raise CollapseError(
                f"after {step + 1} steps chosen answers are {-drift:.1f} nats a token less likely than under the reference",
                expected=f"a fall of {self.max_chosen_drop:g} at most",
                remedy="Anchor them: a higher nll or replay, a lower learning rate, fewer epochs.",
            )
        if self.best >= GOOD and accuracy < FLIPPED:
            raise CollapseError(
                f"after {step + 1} steps {accuracy:.0%} of the pairs are ranked rightly, and it was {self.best:.0%}",
                expected="a ranking that does not turn round",
                remedy="Use a lower learning rate or fewer epochs.",
            )
