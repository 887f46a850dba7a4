"""What readers are shown of a round, what they say of it, and what their votes come to."""

from typing import Literal

from pydantic import Field

from stllava.records.record import Keyed, Record
from stllava.records.verdict import Rate

VoteChoice = Literal["first", "second", "equal", "both wrong", "bad question", "bad image", "cannot tell"]
"""Which of a task's two answers is better, or why neither is: both are as good, both are wrong, the question or the image is
no good, or the reader cannot tell."""
ItemChoice = Literal[
    "right",
    "wrong",
    "bad reference",
    "valid",
    "not valid",
    "burned",
    "not burned",
    "bad question",
    "bad image",
    "cannot tell",
]
"""What a reader says of one thing alone: of a benchmark's answer whether it is right or wrong, or that its reference, question
or image is no good; of a question whether it is valid; of a picture whether text is burned in; or that one cannot tell."""
Preferred = Literal["first", "second", "equal"]
"""What an expert says of two answers."""
Stratum = Literal["uncertain", "random"]
"""Whether a task was drawn among the verdicts that something speaks against, or among all others."""


class ReviewTask(Keyed):
    """Two answers to a question about an image, on which an expert has given a verdict and a reader is asked for one."""

    id: str
    """Hash of judgment and texts."""
    answers_id: str
    """The answers that both are of."""
    judgment_id: str
    """The expert's judgment of them."""
    images: tuple[str, ...]
    """Paths relative to the image root."""
    question: str
    """Text of the question."""
    first: int
    """Place of one answer among the completions."""
    second: int
    """Place of the other, behind the first one's."""
    texts: tuple[str, str]
    """Both answers, without what the policy thought aloud."""
    expert: str
    """Who judged."""
    verdict: Preferred
    """What the expert says of the two."""
    reason: str
    """The expert's grounds."""
    doubts: tuple[str, ...]
    """What speaks against the verdict; empty where nothing does."""
    stratum: Stratum
    """Among which verdicts it was drawn."""
    inclusion: float = Field(gt=0, le=1)
    """The probability with which a verdict of that stratum was drawn."""
    readers: int
    """How many readers are to read it."""
    repeated: bool
    """Whether a reader is to read it a second time."""


class StruckSentence(Record):
    """A sentence of an answer that a reader struck out because it is wrong."""

    answer: Literal["first", "second"]
    """Whose it is."""
    text: str
    """Its words."""


class ReviewVote(Keyed):
    """One thing that a reader did: a line of `votes/READER.jsonl`, which is only ever added to.

    A `vote` is given blind. A `response` to the expert's verdict, which is shown after it, belongs to the vote before it on
    the same task and turn, and replaces an earlier response. An `undo` takes back both.
    """

    id: str
    """Hash of reader and number."""
    number: int
    """Its place in the file, from 1."""
    event: Literal["vote", "response", "undo"]
    """What was done."""
    reader: str
    """Who did it."""
    at: str
    """When: ISO 8601, UTC."""
    task_id: str
    """On which task."""
    turn: int = 0
    """0 the first time that this reader sees the task, 1 the second time."""
    seconds: float = 0.0
    """Of a vote, how long the task was on screen."""
    left: Literal["first", "second"] = "first"
    """Which answer stood at the left, or above."""
    choice: VoteChoice | ItemChoice | None = None
    """Of a vote, what the reader says."""
    annotation: int | None = Field(default=None, exclude_if=lambda number: number is None)
    """Of a vote from Label Studio, the annotation's number there; None, and not written, of one from the page."""
    struck: tuple[StruckSentence, ...] = ()
    """Sentences that the reader struck out."""
    correct_answer: str | None = None
    """The right answer, where the reader typed it."""
    decision: Literal["confirm", "overturn"] | None = None
    """Of a response, whether the reader now agrees with the expert, or overturns its verdict."""
    reason: str = ""
    """Of a response, the reader's grounds."""
    significant: bool | None = None
    """Of a response that overturns, whether the expert's error would matter clinically; None where it was not said."""


class ReaderSpeed(Record):
    """What one reader did."""

    reader: str
    """Who."""
    votes: int
    """Votes that stand."""
    undone: int
    """Votes taken back."""
    median_seconds: float
    """Half of the votes took no longer."""
    same_again: Rate | None
    """Of tasks read twice, those with the same vote both times; None without any."""


class StratumVotes(Record):
    """What readers say of the verdicts of one stratum."""

    stratum: Stratum
    """Which."""
    verdicts: int
    """Verdicts of the round that belong to it."""
    read: int
    """Those on which a reader gave a verdict."""
    disagreed: Rate | None
    """Of these, the share on which the reader's blind vote differs from the expert's verdict."""


class VotesCheck(Record):
    """What readers' votes say of an expert and of each other; every interval is resampled, or clustered, by image."""

    expert: str
    """Whose verdicts were read."""
    tasks: int
    """Tasks drawn."""
    read: int
    """Those with a vote that stands."""
    choices: dict[str, int]
    """Votes by what they say."""
    strata: tuple[StratumVotes, ...]
    """By stratum."""
    disagreed: Rate | None
    """Share of the round's verdicts from which a reader's blind vote differs, by stratum weights."""
    reader_error: Rate | None
    """Share of readers' votes that are wrong about the expert, from tasks that two of them read; None without such tasks."""
    expert_error: Rate | None
    """Share of the round's verdicts that are wrong: what readers disagree with, less their own errors."""
    overturned: Rate | None
    """Share of the round's verdicts that readers still hold to be wrong once they have seen its reason; None where nobody
    responded to a verdict."""
    significant: Rate | None
    """Of verdicts that were overturned, those whose error would matter clinically, where readers said so."""
    bad_questions: Rate | None
    """Share of the round's judged questions that readers hold to be no good."""
    bad_images: Rate | None
    """Share of them about an image that is no good."""
    between_readers: Rate | None
    """Krippendorff's alpha of readers, on tasks that several read."""
    with_expert: Rate | None
    """Cohen's kappa of readers and expert over better, worse and equal, each task by its stratum's weight."""
    readers: tuple[ReaderSpeed, ...]
    """Who read."""
    median_seconds: float | None
    """Of all votes."""
    corrected: int
    """Tasks to which a right answer was typed."""
