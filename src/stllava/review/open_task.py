"""What a reader has on screen: a task, how its answers stand there, and what a choice on the page says of it."""

import re
from dataclasses import dataclass
from typing import Literal

from stllava.records import ItemChoice, ItemTask, ReviewTask, StruckSentence, VoteChoice
from stllava.review.choices import Shown, Side, is_item_choice, is_shown_choice
from stllava.review.readings import StandingVote

AnyTask = ReviewTask | ItemTask
_SENTENCE = re.compile(r"(?:[^.!?\n]|[.](?=\d))+[.!?]*\s*|[.!?\n]+\s*")


class RefusedVoteError(Exception):
    """A vote, a response or an undo that does not fit what is open; nothing was written."""


@dataclass
class OpenTask:
    """What a reader has on screen."""

    task: AnyTask
    turn: int
    left: Literal["first", "second"]
    since: float
    """When it was opened, on the clock of `monotonic`."""
    vote: StandingVote | None = None
    """The vote on it, once there is one."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The answers as they stand on the page: left and right, or the one there is, or none."""
        if isinstance(self.task, ItemTask):
            return (self.task.answer,) if self.task.kind == "predictions" else ()
        return self.task.texts if self.left == "first" else self.task.texts[::-1]

    def shown(self, choice: VoteChoice | ItemChoice) -> Shown | ItemChoice:
        """A choice as it is seen on the page."""
        if choice == "first" or choice == "second":
            return "left" if choice == self.left else "right"
        return choice

    def meant(self, shown: Shown | ItemChoice) -> VoteChoice | ItemChoice:
        """What a choice on the page says of the task."""
        if isinstance(self.task, ItemTask):
            if not is_item_choice(shown, self.task.kind):
                raise RefusedVoteError(f"Nobody is asked here what {shown!r} would answer.")
            return shown
        if not is_shown_choice(shown):
            raise RefusedVoteError(f"Of two answers nobody can say {shown!r}.")
        if shown == "left":
            return self.left
        return self.answer_at("right") if shown == "right" else shown

    def strike(self, side: Side, place: int) -> StruckSentence:
        """The sentence at a place of the answer that stands on a side, struck out; one that is not there is refused."""
        at = ("left", "right").index(side)
        there = sentences(self.texts[at]) if at < len(self.texts) else []
        if not 0 <= place < len(there):
            raise RefusedVoteError(f"The answer on the {side} has no sentence {place + 1} to strike.")
        return StruckSentence(answer=self.answer_at(side), text=there[place].strip())

    def refuse_answer(self, typed: str) -> None:
        """Refuse a right answer to what has no answer."""
        if typed.strip() and not self.texts:
            raise RefusedVoteError("There is no answer here to which a right one could be typed.")

    def answer_at(self, side: Side) -> Literal["first", "second"]:
        """Which answer stands there."""
        return self.left if side == "left" else "second" if self.left == "first" else "first"


def sentences(text: str) -> list[str]:
    """A text cut behind its sentences; together they are the text, but for white space at its start."""
    return _SENTENCE.findall(text) or [text]
