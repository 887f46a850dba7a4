"""What every expert is: something that scores the answers to one question."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from stllava.records import Answers, Comparison


@dataclass(frozen=True)
class Verdict:
    """Scores for the completions of one `Answers` record, or the cause why there are none."""

    scores: tuple[float, ...] | None
    """One per completion from 0 to 1, higher is better; None when there is no verdict."""
    cause: str | None
    """Why there is no verdict: abstained, unparsed, refused or failed; None when there is one."""
    reason: str
    """The expert's grounds in words."""
    comparisons: tuple[Comparison, ...] = ()
    """What it says of every two different completions; empty where the scores say it all."""
    context: tuple[str, ...] = ()
    """Ids of the contexts it was shown."""
    raw: tuple[str, ...] = ()
    """Raw replies, in every order asked."""
    usage: dict[str, int] = field(default_factory=dict)
    """Tokens or calls used, by name."""
    cost: float = 0.0
    """US dollars."""
    agreement: float | None = None
    """Of a panel, the share of its members' votes that its verdict follows; None for one expert alone."""


class Expert(Protocol):
    """Judges answers; the same answers always get the same verdict, or the verdict says why not."""

    @property
    def name(self) -> str:
        """Who it is, for the records and the report."""

    @property
    def method(self) -> str:
        """How it comes to its verdicts, one plain sentence for the report."""

    @property
    def prompt_hash(self) -> str:
        """Hash of the rubric or rule it applies."""

    def prepare(self, given: Iterable[Answers]) -> None:
        """Find out all that judging these answers takes, and keep it; `given` may be gone through more than once.

        An expert that is asked elsewhere is asked here, everything at once; `judge` then only reads.
        """

    def judge(self, answers: Answers) -> Verdict:
        """Score each completion, or abstain."""


class Knowing:
    """An expert that needs no preparation."""

    def prepare(self, given: Iterable[Answers]) -> None:
        """Nothing is to be found out."""
