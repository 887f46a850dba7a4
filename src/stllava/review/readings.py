"""Which votes stand: what each reader says of each task once undone votes are taken out. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stllava.records import ItemChoice, Preferred, ReviewTask, ReviewVote, VoteChoice
from stllava.review.choices import is_pair_choice


@dataclass(frozen=True)
class StandingVote:
    """A vote that stands, and the response to the expert's verdict where there is one."""

    vote: ReviewVote
    response: ReviewVote | None = None

    @property
    def choice(self) -> VoteChoice | ItemChoice:
        """What the reader said."""
        if self.vote.choice is None:
            raise ValueError(f"vote {self.vote.id} says nothing")
        return self.vote.choice

    @property
    def blind(self) -> VoteChoice:
        """What the reader said of two answers before the expert's verdict was shown."""
        said = self.choice
        if not is_pair_choice(said):
            raise ValueError(f"vote {self.vote.id} says {said!r} of two answers")
        return said

    @property
    def correct_answer(self) -> str | None:
        """The right answer, where the reader typed it: as it stood in its field at the last response, or at the vote."""
        return (self.response or self.vote).correct_answer

    def settled(self, task: ReviewTask) -> VoteChoice:
        """What the reader says after having seen the expert's verdict: that one where it was confirmed."""
        confirmed = self.response is not None and self.response.decision == "confirm"
        return task.verdict if confirmed else self.blind


def preferred(choice: VoteChoice) -> Preferred | None:
    """Which answer a vote holds to be better; None where it does not say."""
    if choice in ("first", "second", "equal"):
        return choice
    return "equal" if choice == "both wrong" else None


def apply(found: dict[tuple[str, int], StandingVote], vote: ReviewVote) -> None:
    """Bring the votes that stand of one reader, by task and turn, up to what the reader did next."""
    key = (vote.task_id, vote.turn)
    if vote.event == "response":
        if key in found:
            found[key] = StandingVote(found[key].vote, vote)
        return
    found.pop(key, None)  # A new vote stands behind all others.
    if vote.event == "vote":
        found[key] = StandingVote(vote)


def standing(votes: Iterable[ReviewVote]) -> dict[tuple[str, int], StandingVote]:
    """One reader's votes that stand, by task and turn, in the order in which they were given."""
    found: dict[tuple[str, int], StandingVote] = {}
    for vote in votes:
        apply(found, vote)
    return found


def readings_by_task(votes: Mapping[str, Sequence[ReviewVote]]) -> dict[str, list[StandingVote]]:
    """Every first reading of a task, the earliest first; second turns are left out."""
    found: dict[str, list[StandingVote]] = {}
    for given in votes.values():
        for (task, turn), reading in standing(given).items():
            if turn == 0:
                found.setdefault(task, []).append(reading)
    return {task: sorted(rows, key=lambda row: (row.vote.at, row.vote.reader)) for task, rows in found.items()}
