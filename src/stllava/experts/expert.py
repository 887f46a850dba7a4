"""What every expert is: something that scores the answers to one question."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from stllava.errors import NothingLeftError, StllavaError
from stllava.experts.model.verdict_parser import RAISE
from stllava.records import Answers, Comparison, VerdictCause
from stllava.remote.refusals import advice
from stllava.text import printable

UNREADABLE = 12
"""So many replies without one verdict, the first ones of a start, end the asking."""
SHOWN_OF_A_REPLY = 200
"""Characters of a reply that is shown as an example."""
_CAUSES: Mapping[VerdictCause, str] = {
    "unparsed": "no verdict could be read from the reply",
    "refused": "the model or its provider declined",
    "failed": "no usable reply came",
    "abstained": "the expert said that it cannot judge this",
    "same text": "all answers were the same text, and this expert compares answers",
}
"""What each cause means."""
_REMEDIES: Mapping[VerdictCause, str] = {
    "unparsed": "Name a model that can follow the rubric, bring a rubric of your own, or set structured the other way",
    "refused": "Name a model or a provider that answers medical questions",
    "failed": "Correct what the failure names",
    "abstained": "Check that it sees what it is to judge: --root, --truth, data.references, a vision-language model",
    "same text": "Answer with a higher sampling.temperature or more answers (num_answers)",
}
"""What helps against each cause where the reply itself names nothing better."""


@dataclass(frozen=True)
class Verdict:
    """Scores for the completions of one `Answers` record, or the cause why there are none."""

    scores: tuple[float, ...] | None
    """One per completion from 0 to 1, higher is better; None when there is no verdict."""
    cause: VerdictCause | None
    """Why there is no verdict; None when there is one."""
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
    correction: str | None = None
    """The right answer where none of the completions is right, as far as the expert knows it."""


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

    @property
    def damage(self) -> str:
        """What is lost of the replies it keeps, in a sentence for the manifest; empty where nothing is."""

    @property
    def cost(self) -> float:
        """US dollars that its verdicts have cost, by the replies it keeps."""

    def can_judge(self, answers: Answers) -> bool:
        """Whether a verdict can come of asking about these answers: none can where it compares and all say the same."""

    def max_cost_of(self, answers: Answers) -> float:
        """US dollars that judging these answers costs at most. Raises StllavaError where no price is known."""

    def is_ready(self, answers: Answers) -> bool:
        """Whether all that judging these answers takes has been found out."""

    def prepare(self, given: Iterable[Answers]) -> None:
        """Find out all that judging these answers takes, and keep it; `given` may be gone through more than once.

        An expert that is asked elsewhere is asked here, everything at once; `judge` then only reads.
        """

    def judge(self, answers: Answers) -> Verdict:
        """Score each completion, or abstain."""


class FreeExpert:
    """An expert that costs nothing, needs no preparation and has a verdict on whatever it is shown."""

    damage = ""
    """It keeps nothing that could be lost."""
    cost = 0.0
    """It costs nothing."""

    def can_judge(self, answers: Answers) -> bool:
        """It scores each answer by itself."""
        return True

    def max_cost_of(self, answers: Answers) -> float:
        """It costs nothing."""
        return 0.0

    def is_ready(self, answers: Answers) -> bool:
        """Nothing is to be found out."""
        return True

    def prepare(self, given: Iterable[Answers]) -> None:
        """Nothing is to be found out."""


def no_verdict(
    expert: str, subject: str, causes: Mapping[VerdictCause, int], examples: Mapping[VerdictCause, str], *, ended: bool
) -> StllavaError:
    """The error of an expert without a verdict: the commonest cause, an example of it and what helps.

    `subject` names what there is no verdict on; `examples` holds a reply or a failure in its words by cause. Where the
    expert has `ended`, nothing is left to learn from; else there may be, once it is asked as it should be.
    """
    cause = max(causes, key=lambda one: causes[one])
    example = shown(examples.get(cause, ""))
    cut = RAISE in examples.get(cause, "")
    remedy = f"{RAISE[0].upper()}{RAISE[1:]}" if cut else advice(example).rstrip(".") or _REMEDIES[cause]
    count = f"{causes[cause]} {'time' if causes[cause] == 1 else 'times'}"
    if expert == "itself":
        remedy = "In another folder, train the policy longer in sft or answer with a lower sampling.temperature; or lower "
        remedy += "itself.min_precision here"
    return (NothingLeftError if ended else StllavaError)(
        f"{expert} gave no verdict on {subject}; {count} {_CAUSES[cause]} ({cause}), such as “{example}”",
        expected="verdicts",
        remedy=f"{remedy}; then give the command again: replies are kept, and none is paid for twice.",
    )


def shown(text: str) -> str:
    """A reply short enough for an error, on one line and without anything that a terminal obeys."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= SHOWN_OF_A_REPLY else line[: SHOWN_OF_A_REPLY - 1] + "…"
