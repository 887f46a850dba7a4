"""The verdicts that a run may buy, and each round's share of them."""

import math
from dataclasses import dataclass
from pathlib import Path

from stllava.config import JudgeOptions
from stllava.errors import NothingLeftError
from stllava.recipe import RunOptions
from stllava.rundir import RunDir, round_name
from stllava.store import MANIFEST, read_manifest


@dataclass
class RoundBudget:
    """What a run's rounds may ask the expert, by `judge.budget` and `budget_cost`, and what they have asked."""

    options: RunOptions
    folder: RunDir
    asked: float = 0.0
    """Questions that the expert was asked about so far."""
    cost: float = 0.0
    """US dollars that this cost."""

    def spend(self, asked: float, cost: float) -> None:
        """Count so many questions and US dollars."""
        self.asked += asked
        self.cost += cost

    def share(self, number: int) -> JudgeOptions:
        """How a round's answers are judged: what is left is shared evenly by the rounds still to come.

        A round that made a policy keeps the share it had, however the budget or the number of rounds has changed since; one
        that was judged and went no further gets more where there is more.
        """
        options, name = self.options.judge, round_name(number)
        judged = self.folder.stage(name, "judge")
        had = with_share_of(options, judged) if (judged / MANIFEST).is_file() else None
        if had is not None and (self.folder.policy(name) / MANIFEST).is_file():
            return had
        left = min(self.options.rounds, self.options.distill_after or self.options.rounds) - number + 1
        shares: dict[str, float] = {}
        # A share of nothing would mean no limit.
        for name, total, spent in (("budget", options.budget, self.asked), ("budget_cost", options.budget_cost, self.cost)):
            if total and spent >= total:
                raise NothingLeftError(
                    f"judge.{name} of {total:g} is spent",
                    expected="a verdict to pay for",
                    remedy="Raise it and give the same command again, or run fewer rounds.",
                )
        if options.budget:
            shares["budget"] = math.ceil((options.budget - self.asked) / left)
        if options.budget_cost:
            shares["budget_cost"] = (options.budget_cost - self.cost) / left
        now = options.model_copy(update=shares)
        return had if had is not None and not has_less(judged, now) else now


def with_share_of(options: JudgeOptions, judged: Path) -> JudgeOptions:
    """How answers were judged into a folder, where nothing but the budget has changed since."""
    made = read_manifest(judged).config
    return options.model_copy(update={name: made[name] for name in ("budget", "budget_cost")})


def has_less(judged: Path, options: JudgeOptions) -> bool:
    """Whether answers were judged into a folder within less than these options allow; 0 is no limit."""
    had = with_share_of(options, judged)
    limits = ((had.budget, options.budget), (had.budget_cost, options.budget_cost))
    return any((before or math.inf) < (now or math.inf) for before, now in limits)
