"""Pairs that dpo learns from, and where they, and answers that are learned last, come from."""

from pydantic import Field

from stllava.records.dialogue import Message, Role
from stllava.records.record import Keyed, Record


class Lineage(Record):
    """Where a preference comes from."""

    question_id: str
    answers_id: str
    judgment_id: str
    correction: bool = Field(default=False, exclude_if=lambda corrected: not corrected)
    """Whether the chosen answer is the expert's correction, or what a reader typed, which the policy did not give."""
    readers: tuple[str, ...] = Field(default=(), exclude_if=lambda names: not names)
    """Who decided which answer is better, where people did; empty where the expert did."""
    own_vote: bool = Field(default=False, exclude_if=lambda voted: not voted)
    """Whether the policy's own vote decided which answer is better (the expert `itself`)."""
    overruled: bool = Field(default=False, exclude_if=lambda overruled: not overruled)
    """Whether verdicts on the same question in other words changed what the expert's own says of the answers."""


class ConversationLineage(Keyed):
    """Where a conversation of the last training comes from, where people decided what it teaches."""

    id: str
    """The conversation's id."""
    lineage: Lineage
    """Question, answers and judgment behind it, and whose votes."""


class QuestionParaphrase(Keyed):
    """Two questions that ask the same in other words, as the answers to them show."""

    id: str
    """Of the two."""
    questions: tuple[str, str]
    """In small letters and without what stands around the words, in alphabetical order."""
    reliability: float
    """In what share of images an answer is right to both or to neither, less one standard error."""


class Reference(Keyed):
    """How likely a pair's answers are under the policy that learning from it starts from."""

    id: str
    """The preference's id."""
    policy: str
    """Fingerprint of the weights."""
    chosen: float
    """Natural logarithm of the chosen answer's untempered probability, its end included."""
    rejected: float
    """The same of the rejected answer, without an end where it was cut off."""


class Preference(Keyed):
    """One pair to learn from."""

    id: str
    """Hash of prompt, chosen, rejected and lineage, but for what the judgment's id says already."""
    images: tuple[str, ...]
    """Paths relative to the image root."""
    prompt: tuple[Message, ...]
    """The turns before the answer."""
    chosen: str
    """The better answer."""
    rejected: str
    """The worse answer."""
    rejected_ended: bool = True
    """Whether the worse answer came to its own end; one that was cut off is learned without an end."""
    speaker: Role = Field(default="assistant", exclude_if=lambda speaker: speaker == "assistant")
    """Who says both texts: the assistant, who answers, or the virtual user, who asks; the assistant is not written."""
    margin: float
    """Difference of their scores, above 0."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, exclude_if=lambda weight: weight == 1)
    """How much it counts beside other pairs; where all count the same it is 1 and not written."""
    lineage: Lineage
    """Question, answers and judgment behind it."""
    reference: Reference | None = None
    """What the policy that answered noted as it spoke, where it did."""
