"""What pairs come of people's votes: where readers have decided about two answers, the expert's verdict on them does not count.

Reads a review folder. Of several readers what most say counts, each after having seen the expert's verdict. Votes of those
who cannot tell change nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stllava.errors import StllavaError
from stllava.metrics.robust import normalise
from stllava.records import Answers, Preferred, VoteChoice, content_id
from stllava.review.readings import StandingVote, readings_by_task
from stllava.review.tasks import TASKS, read_tasks
from stllava.review.vote_log import read_votes, votes_path
from stllava.rundir import REVIEW
from stllava.store import file_hash, output_hash

OverruleCause = Literal[
    "readers disagree", "readers: both wrong", "readers: equally good", "readers: bad question", "readers: bad image"
]
"""Why readers' votes make no pair, and let none be made."""


@dataclass(frozen=True)
class Decision:
    """What readers say of two answers together."""

    first: int
    """Place of one answer among the completions."""
    second: int
    """Place of the other."""
    choice: VoteChoice | None
    """What most say; None where they disagree."""
    verdict: Preferred
    """What the expert says."""
    correct_answer: str | None
    """The right answer, where one of them typed it."""
    readers: tuple[str, ...]
    """Whose votes these are."""

    @property
    def confirms(self) -> bool:
        """Whether they hold the same answer to be better as the expert."""
        return self.choice == self.verdict != "equal"


@dataclass(frozen=True)
class VotedPair:
    """A pair as readers decided it."""

    chosen: str
    """Its words: a completion, or what a reader typed."""
    rejected: int
    """Place of the worse answer among the completions."""
    readers: tuple[str, ...]
    """Who decided."""


class Decisions:
    """What the readers of a review folder decided, by answers."""

    def __init__(self, by_answers: Mapping[str, Decision], bad_images: frozenset[str] = frozenset()) -> None:
        """Know decisions by the id of the answers, and the images that no question is worth asking about."""
        self._by_answers, self._bad_images = by_answers, bad_images

    def of(self, answers: Answers) -> Decision | None:
        """What readers said of these answers; None where none of them could tell, or was asked."""
        return self._by_answers.get(answers.id)

    def speaks_of(self, answers: Answers) -> bool:
        """Whether readers said anything of these answers or of an image of theirs."""
        return self.refuses(answers) or self.of(answers) is not None

    def refuses(self, answers: Answers) -> bool:
        """Whether readers hold an image of these answers to be no good."""
        return not self._bad_images.isdisjoint(answers.images)


def votes_hash(folder: Path) -> str:
    """One hash of a review folder's tasks and of every vote in it; raises `StllavaError` for another folder."""
    if not (folder / TASKS).is_dir():
        raise StllavaError(
            f"{folder} is no review folder",
            expected="the folder review of a round, in which `stllava review` keeps tasks and votes",
            remedy=f"Name {folder / REVIEW}." if (folder / REVIEW / TASKS).is_dir() else "Check the path (--votes).",
        )
    votes = {reader: file_hash(votes_path(folder, reader)) for reader in read_votes(folder)}
    return content_id(output_hash(folder / TASKS), dict(sorted(votes.items())))


def read_decisions(folder: Path) -> Decisions:
    """What the readers of a review folder decided."""
    given = readings_by_task(read_votes(folder))
    decisions: dict[str, Decision] = {}
    bad: set[str] = set()
    for task in read_tasks(folder):
        rows = [row for row in given.get(task.id, ()) if row.settled(task) != "cannot tell"]
        if not rows:
            continue
        choice = _majority([row.settled(task) for row in rows])
        if choice == "bad image":
            bad.update(task.images)
        decisions[task.answers_id] = Decision(
            first=task.first,
            second=task.second,
            choice=choice,
            verdict=task.verdict,
            correct_answer=_typed(rows),
            readers=tuple(sorted({row.vote.reader for row in rows})),
        )
    return Decisions(decisions, frozenset(bad))


def voted_pair(answers: Answers, decision: Decision) -> VotedPair | OverruleCause:
    """The pair that readers decided, or the cause why there is none.

    What a reader typed is chosen against the answer that is worse, or, where both are wrong, against the one that the expert
    held to be better: that is what it would have taught. Words that an answer has too are that answer.
    """
    choice, first, second = decision.choice, decision.first, decision.second
    if choice in ("bad question", "bad image"):
        return "readers: bad question" if choice == "bad question" else "readers: bad image"
    typed = decision.correct_answer
    if typed is not None and normalise(typed):
        same = next((at for at in (first, second) if normalise(answers.final_answers[at]) == normalise(typed)), None)
        if same is not None:
            return VotedPair(answers.completions[same], second if same == first else first, decision.readers)
        worse = {"first": second, "second": first}.get(choice or "", first if decision.verdict != "second" else second)
        return VotedPair(typed, worse, decision.readers)
    if choice in ("first", "second"):
        better, worse = (first, second) if choice == "first" else (second, first)
        return VotedPair(answers.completions[better], worse, decision.readers)
    if choice is None:
        return "readers disagree"
    return "readers: both wrong" if choice == "both wrong" else "readers: equally good"


def _majority(choices: Sequence[VoteChoice]) -> VoteChoice | None:
    """What most say; None where two say most."""
    ranked = Counter(choices).most_common(2)
    return None if len(ranked) > 1 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def _typed(rows: Sequence[StandingVote]) -> str | None:
    """The right answer as the first reader typed it who did."""
    return next((row.correct_answer for row in rows if row.correct_answer), None)
