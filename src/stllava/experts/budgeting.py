"""What an expert is asked about within a budget, and what it said before and is not asked again."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from stllava.config import JudgeOptions
from stllava.errors import NothingLeftError
from stllava.experts.expert import Expert, Verdict
from stllava.experts.selection import KnownVerdicts, candidate, choose
from stllava.records import Answers
from stllava.remote.budget import BudgetSpentError

LEAST_MORE = 0.01
"""What is left of a budget in dollars buys more questions while they are at least this share of those asked before."""


@dataclass(frozen=True)
class Chosen:
    """The answers that are judged, in their order; iterating gives those that the expert is to be asked about."""

    given: Iterable[Answers]
    """All answers; gone through more than once."""
    known: KnownVerdicts
    """What need not be asked."""
    asked: frozenset[str] | None
    """Ids of the answers that the expert is asked about; None where there is no budget, and so all are."""
    measures: dict[str, float]
    """What the manifest says of the choice; nothing where there was none."""
    note: str = ""
    """What a reader of the manifest must know of it."""
    dollars: float = 0.0
    """What is left to spend on these and on more, in US dollars; 0 where there is no such budget."""
    waiting: tuple[tuple[str, float], ...] = ()
    """Ids of the answers that it could buy verdicts on next, in their order, with what each costs at most."""

    @classmethod
    def among(
        cls, given: Iterable[Answers], *, known: KnownVerdicts, expert: Expert, options: JudgeOptions, seed: int
    ) -> "Chosen":
        """What is judged within the budget of the options."""
        if not options.budget and not options.budget_cost:
            return cls(given, known, None, {})
        candidates = [candidate(row) for row in given if known.verdict(row) is None and expert.can_judge(row)]
        order = choose(candidates, options.budget or len(candidates), by=options.selection, seed=seed)
        waiting: tuple[tuple[str, float], ...] = ()
        if options.budget_cost:
            chosen = set(order)
            # All before the first reply, which corrects what later ones are reckoned with: a resumed stage asks the same.
            costs = {row.id: expert.max_cost_of(row) for row in given if row.id in chosen}
            order, waiting = _affordable(tuple((key, costs[key]) for key in order), options.budget_cost)
            if not order and candidates:
                least = min(costs.values())
                raise NothingLeftError(
                    f"judge.budget_cost is ${options.budget_cost:g}, and judging the first question can cost ${least:.4g}",
                    expected="a budget for one question at least",
                    remedy="Raise it.",
                )
        settled = sum(each.entropy == 0 for each in candidates)
        return cls(
            given,
            known,
            frozenset(order),
            {"asked": float(len(order)), "not_chosen": float(len(candidates) - len(order)), "settled": float(settled)},
            dollars=options.budget_cost,
            waiting=waiting,
        )

    def ask(self, expert: Expert) -> "Chosen":
        """Ask the expert, about more where a budget in dollars has not been spent; returns what it was asked about.

        That is less than was chosen where the dollars ran out before the questions.
        """
        chosen = bought = self
        while True:
            try:
                expert.prepare(bought)
            except BudgetSpentError as error:
                return chosen._paid(expert, error)
            if chosen.asked is None:
                return chosen
            bought = bought._next(expert)
            more = bought.asked or frozenset()
            if len(more) < max(1, LEAST_MORE * len(chosen.asked)):
                return chosen
            chosen = chosen._and(more)

    def _next(self, expert: Expert) -> "Chosen":
        """What can be had next for what these cost less than was reckoned with; nothing where nothing waits."""
        left = self.dollars - sum(expert.judge(row).cost for row in self) if self.waiting else 0.0
        bought, waiting = _affordable(self.waiting, left)
        return replace(self, asked=frozenset(bought), dollars=left, waiting=waiting)

    def _and(self, more: frozenset[str]) -> "Chosen":
        """These and more."""
        counts = {"asked": float(len(more)), "not_chosen": -float(len(more))}
        measures = {name: value + counts.get(name, 0.0) for name, value in self.measures.items()}
        return replace(self, asked=(self.asked or frozenset()) | more, measures=measures)

    def _paid(self, expert: Expert, error: BudgetSpentError) -> "Chosen":
        """Those whose every reply was paid for before the dollars ran out."""
        asked = list(self)
        paid = frozenset(row.id for row in asked if expert.is_ready(row))
        if not paid:
            raise NothingLeftError(
                "judge.budget_cost is spent, and no question is judged",
                expected="a budget for one question at least",
                remedy="Raise it and give the same command again: every reply is kept.",
            ) from error
        left_out = len(asked) - len(paid)
        counts = {"asked": float(len(paid)), "not_chosen": self.measures["not_chosen"] + left_out, "cost": expert.cost}
        note = (
            f"judge.budget_cost was spent before {left_out:,} of {len(asked):,} chosen questions were judged: "
            "replies cost more than was reckoned with (image_tokens, max_tokens)."
        )
        return replace(self, asked=paid, measures=self.measures | counts, note=note)

    def __iter__(self) -> Iterator[Answers]:
        for row in self.given:
            if (self.asked is None or row.id in self.asked) and self.known.verdict(row) is None:
                yield row

    def verdicts(self, expert: Expert) -> Iterator[tuple[Answers, Verdict]]:
        """The expert's verdict on each, and the earlier verdicts on what need not be asked."""
        for row in self.given:
            verdict = self.known.verdict(row)
            if verdict is not None or self.asked is None or row.id in self.asked:
                yield row, verdict if verdict is not None else expert.judge(row)

    def left_out(self) -> Iterator[Answers]:
        """The answers that nobody is asked about."""
        for row in self.given:
            if self.asked is not None and row.id not in self.asked and self.known.verdict(row) is None:
                yield row


def _affordable(costs: tuple[tuple[str, float], ...], dollars: float) -> tuple[list[str], tuple[tuple[str, float], ...]]:
    """The first ids whose costs together are within so many dollars, and all behind them with theirs."""
    total = 0.0
    for place, (_, cost) in enumerate(costs):
        total += cost
        if total > dollars:
            return [key for key, _ in costs[:place]], costs[place:]
    return [key for key, _ in costs], ()
