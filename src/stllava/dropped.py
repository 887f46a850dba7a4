"""What goes into a stage and does not come out: counted by cause, with an example of each, and when it ends the stage.

An item that cannot be used, because its image is missing, say, is a fault. It costs itself alone: faults end a stage only
where they are more than the share `max_bad` of its items, beyond a dozen that are always let pass, or where nothing is
left. What a policy says and nobody can use is dropped as well, but is no fault; of a dozen and more some must be of use.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from stllava.errors import ItemError, NothingLeftError, StllavaError, TextError

LET_PASS = 12
"""Of fewer a share says little: so many faults end no stage while anything is left."""
EXAMPLE_LENGTH = 300
SET_ASIDE = "worker lost"
"""The cause of items that nobody could work on without being lost."""


class Dropped(Counter[str]):
    """Items that were left out, by cause, with an example of each cause."""

    def __init__(self, counts: Mapping[str, int] | Iterable[str] = ()) -> None:
        super().__init__(counts)
        self.faults: Counter[str] = Counter()
        """Those of them that are faults of the input, by cause and in items."""
        self.examples: dict[str, str] = {}
        """A detail of each cause: which file was missing, what was said."""

    @classmethod
    def all_faults(cls, counts: Mapping[str, int]) -> "Dropped":
        """Items that could not be read."""
        dropped = cls(counts)
        dropped.faults.update(counts)
        return dropped

    def drop(self, cause: str, example: str = "") -> None:
        """Count something that nobody can use."""
        self[cause] += 1
        self._note(cause, example)

    def fault(self, error: ItemError, *, of: str = "", outputs: int = 1) -> None:
        """Count an item that cannot be used as the outputs that it would have had; its cause is said `of` something.

        That of a text stands by itself.
        """
        cause = error.cause if isinstance(error, TextError) else f"{of} {error.cause}".strip()
        self[cause] += outputs
        self.faults[cause] += 1
        self._note(cause, str(error))

    @classmethod
    def set_aside(cls, outputs: int, detail: str) -> "Dropped":
        """So many outputs of items that nobody could work on."""
        dropped = cls({SET_ASIDE: outputs})
        dropped._note(SET_ASIDE, detail)
        return dropped

    def take(self, other: "Dropped") -> None:
        """Add what another part of the work has left out."""
        self.update(other)
        self.faults.update(other.faults)
        self.examples = other.examples | self.examples

    def told(self) -> str:
        """Counts and causes in words, the commonest first, and the example of that one."""
        counts = [(cause, count) for cause, count in self.most_common() if count > 0]
        words = ", ".join(f"{count} × {cause}" for cause, count in counts)
        example = self.examples.get(counts[0][0]) if counts else None
        return f"{words}; for example: {example}" if example else words

    def refuse_faults(self, *, items: int, unit: str, max_bad: float, seen: int | None = None) -> None:
        """End a stage of so many items, of which the first were `seen`, where too many or all of them cannot be used."""
        bad = self.faults.total()
        if not bad or (bad < items and bad <= max(LET_PASS, max_bad * items)):
            return
        faults = Dropped(self.faults)
        faults.examples = self.examples
        where = "the image root and the paths" if faults.most_common(1)[0][0].startswith("image") else "these items"
        among = f"{items}" if seen in (None, items) else f"the first {seen} of {items}"
        raise (NothingLeftError if bad == items else StllavaError)(
            f"{bad} of {among} {unit} cannot be used: {faults.told()}",
            expected=f"at most {max_bad:.0%} (max_bad)",
            remedy=f"Check {where} and give the same command again; max_bad sets how many may be left out.",
        )

    def _note(self, cause: str, example: str) -> None:
        if example.strip():
            self.examples.setdefault(cause, " ".join(example.split())[:EXAMPLE_LENGTH])
