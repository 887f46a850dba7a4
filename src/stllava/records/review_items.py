"""What readers are shown one by one, answers, questions or imported pictures, and what their votes come to."""

from typing import Literal

from pydantic import Field

from stllava.records.reader_votes import ItemChoice, ReaderSpeed, Stratum
from stllava.records.record import Keyed, Record
from stllava.records.scores import QuestionKind
from stllava.records.verdict import Rate

ItemKind = Literal["predictions", "questions", "pictures"]
"""A benchmark's questions with a policy's answers, questions that a policy asked itself, or pictures of an imported set."""


class ItemTask(Keyed):
    """One thing that a reader is asked about."""

    id: str
    """Hash of kind, source and answer."""
    kind: ItemKind
    """What it is."""
    source_id: str
    """Id of the prediction, the question or the picture."""
    images: tuple[str, ...]
    """Paths relative to the image root."""
    question: str
    """Text of the question; of a picture, what the reader is asked about it."""
    question_kind: QuestionKind | None = None
    """Of a benchmark's question, open or closed."""
    answer: str = ""
    """Of a prediction, what the policy says, without what it thought aloud."""
    references: tuple[str, ...] = ()
    """Of a prediction, the benchmark's answers, any of which is right."""
    rules: dict[str, bool | None] = Field(default_factory=dict)
    """Of a prediction, whether each rule that is for such questions counts it right; None where the rule cannot read it, which
    counts as wrong."""
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    """Of a picture, where text was blacked out: left, top, right, bottom in pixels, right and bottom outside."""
    doubts: tuple[str, ...]
    """What speaks against it; empty where nothing does."""
    stratum: Stratum
    """Among which it was drawn."""
    inclusion: float = Field(gt=0, le=1)
    """The probability with which one of that stratum was drawn."""
    readers: int
    """How many readers are to read it."""
    repeated: bool
    """Whether a reader is to read it a second time."""


class RuleAgreement(Record):
    """How far readers agree with a rule about which answers are right; every interval is by image."""

    rule: str
    """Name and version of the rule."""
    questions: Literal["all", "closed", "open"]
    """About which questions."""
    agreement: Rate | None
    """Cohen's kappa, each answer by its stratum's weight."""
    same: Rate | None
    """Share of answers of which the rule says what the first reader says."""
    rule_right: Rate | None
    """Share of these answers that the rule counts right."""
    readers_right: Rate | None
    """Share of the same answers that the first reader holds to be right."""


class ItemsCheck(Record):
    """What readers' votes on answers, questions or pictures come to; every interval is by image."""

    kind: ItemKind
    """What was read."""
    tasks: int
    """Tasks drawn."""
    read: int
    """Those with a vote that stands."""
    choices: dict[str, int]
    """Votes by what they say."""
    good: Rate | None
    """Share of the whole that readers hold to be right, valid or free of text, of what they can tell, by stratum weights."""
    shares: dict[ItemChoice, Rate]
    """Share of the whole of which readers say each, by stratum weights."""
    rules: tuple[RuleAgreement, ...]
    """Of answers, how far readers agree with each rule."""
    between_readers: Rate | None
    """Krippendorff's alpha of readers, on tasks that several read."""
    readers: tuple[ReaderSpeed, ...]
    """Who read."""
    median_seconds: float | None
    """Of all votes."""
    corrected: int
    """Tasks to which a right answer was typed."""
