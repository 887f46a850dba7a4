"""What every expert is: something that scores the answers to one question."""

from dataclasses import dataclass, field
from typing import Protocol

from stllava.records import Answers


@dataclass(frozen=True)
class Verdict:
    """Scores for the completions of one `Answers` record, or the cause why there are none."""

    scores: tuple[float, ...] | None
    """One per completion, higher is better; None when there is no verdict."""
    cause: str | None
    """Why there is no verdict: abstained, unparsed, refused or failed; None when there is one."""
    reason: str
    """The expert's grounds in words."""
    raw: tuple[str, ...] = ()
    """Raw replies, in every order asked."""
    usage: dict[str, int] = field(default_factory=dict)
    """Tokens or calls used, by name."""
    cost: float = 0.0
    """US dollars."""


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

    def judge(self, answers: Answers) -> Verdict:
        """Score each completion, or abstain."""
