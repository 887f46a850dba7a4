"""Which pairs are left out so that a policy learns from images, not from how often an answer was right. Pure.

Each pair stands by itself; those of a group (`pairs: group`), whose weights mean something together only, stay or go together,
by the best of the answers and the worst.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from stllava.config import PairOptions
from stllava.data.balance import TaughtAnswer, surplus_of_denials, surplus_of_yes_or_no
from stllava.records import Preference
from stllava.thoughts import final_answer


@dataclass
class PairBalance:
    """Takes note of all pairs, and says which of them stay."""

    options: PairOptions
    _taught: list[TaughtAnswer] = field(default_factory=list)
    """What each pair teaches, or each group."""
    _judgment_of: dict[str, str] = field(default_factory=dict)
    _sizes: Counter[str] = field(default_factory=Counter)
    """Pairs of each group."""
    _gone: set[str] = field(default_factory=set)

    def note(self, pair: Preference) -> None:
        """Keep of a pair what decides whether it stays; those of a question come one after another, the widest first."""
        key = self._key(pair)
        if self._in_groups:
            self._sizes[key] += 1
            if key in self._judgment_of:
                return
        self._taught.append(TaughtAnswer(key, pair.prompt[-1].content, final_answer(pair.chosen)))
        self._judgment_of[key] = pair.lineage.judgment_id

    def settle(self, pairs: Callable[[], Iterable[Preference]]) -> dict[str, int]:
        """Decide which pairs stay; returns how many judgments lose all of theirs, by cause.

        Args:
            pairs: Gives all pairs that were noted once more.
        """
        options, lost = self.options, dict[str, int]()

        def leave_out(surplus: set[str], cause: str) -> None:
            before = len(self._left())
            self._gone |= surplus
            lost[cause] = before - len(self._left())

        leave_out(surplus_of_yes_or_no(self._taught) if options.balance else set(), "surplus of yes or no")
        taught = [row for row in self._taught if row.id not in self._gone]
        leave_out(surplus_of_denials(taught, max_share=options.max_denial_share), "surplus of denials")
        lengths = self._lengths(filter(self.keeps, pairs())) if options.balance_length else ()
        leave_out(surplus_of_one_length(lengths), "surplus of one length")
        return lost

    def keeps(self, pair: Preference) -> bool:
        """Whether a pair stays."""
        return self._key(pair) not in self._gone

    @property
    def judgments(self) -> set[str]:
        """Ids of the judgments that made pairs, whether these stay or not."""
        return set(self._judgment_of.values())

    @property
    def is_empty(self) -> bool:
        """Whether no pair stays."""
        return not self._left()

    @property
    def surplus(self) -> int:
        """Pairs that are left out."""
        return sum(self._sizes[key] for key in self._gone) if self._in_groups else len(self._gone)

    @property
    def _in_groups(self) -> bool:
        return self.options.pairs == "group"

    def _key(self, pair: Preference) -> str:
        """What stays or goes as a whole."""
        return pair.lineage.judgment_id if self._in_groups else pair.id

    def _left(self) -> set[str]:
        return {judgment for key, judgment in self._judgment_of.items() if key not in self._gone}

    def _lengths(self, pairs: Iterable[Preference]) -> Iterator[tuple[str, int]]:
        """By how many characters the chosen answer is longer, of each pair, or of each group's widest."""
        last = ""
        for pair in pairs:
            if (key := self._key(pair)) != last:
                yield key, len(pair.chosen) - len(pair.rejected)
            last = key


def surplus_of_one_length(lengths: Iterable[tuple[str, int]]) -> set[str]:
    """Ids without which longer answers are chosen as often as shorter: of the more frequent, the last ids.

    Args:
        lengths: Ids, and by how many characters the chosen answer is longer than the rejected one.
    """
    chosen: dict[bool, list[str]] = {True: [], False: []}
    for key, longer in lengths:
        if longer:
            chosen[longer > 0].append(key)
    fewest = min(map(len, chosen.values()))
    return {key for keys in chosen.values() for key in sorted(keys)[fewest:]}
