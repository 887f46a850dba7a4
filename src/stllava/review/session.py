"""What readers are shown and what becomes of their votes: the state behind the page, without the page.

One `ReviewSession` serves the readers of a review folder. Of every reader it knows the open task; a vote is accepted for that
one alone, once, and is on the disk before `vote` returns. Readers of other processes are seen by their files. Threads may
share a session.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from threading import RLock
from time import monotonic
from typing import Literal

from pydantic import ValidationError

from stllava.records import ItemChoice, ItemTask, ReviewTask, ReviewVote, content_id
from stllava.review.choices import ReviewKind, Shown, Side, refuse_other_votes
from stllava.review.open_task import AnyTask, OpenTask, RefusedVoteError
from stllava.review.readings import StandingVote, apply
from stllava.review.vote_log import VOTES, VoteLog, votes_behind

logger = logging.getLogger(__name__)

REPEAT_AFTER = 20
"""So many other votes stand between the two times that a reader sees a task, where there are that many."""
PRELOADED = 3


@dataclass
class _ReaderState:
    """What is known of a reader."""

    log: VoteLog | None
    """The reader's file, if this process writes it."""
    standing: dict[tuple[str, int], StandingVote] = field(default_factory=dict)
    open: OpenTask | None = None
    read_to: int = 0
    """Of another process's file, how many bytes were read."""
    seen: int = 0
    """How many it had then."""


@dataclass(frozen=True)
class Advance:
    """How far a reader is."""

    read: int
    """Votes that stand, on tasks that are drawn."""
    left: int
    """Tasks beyond the one on screen that the reader may still be shown."""
    upcoming: list[AnyTask]
    """Those that will probably be next."""


class ReviewSession:
    """The readers of a review folder and what each of them has open."""

    def __init__(self, folder: Path, tasks: Sequence[AnyTask], readers: Iterable[str]) -> None:
        """Open the files of the readers; those of others in the folder are read only, and votes on other things refused."""
        self.tasks, self._folder = tuple(tasks), folder
        self.kind: ReviewKind = tasks[0].kind if tasks and isinstance(tasks[0], ItemTask) else "verdicts"
        self._by_id: dict[str, AnyTask] = {task.id: task for task in tasks}
        self._repeated = [task for task in tasks if task.repeated]
        self._lock = RLock()
        self._states: dict[str, _ReaderState] = {}
        self._takers: dict[str, set[str]] = defaultdict(set)
        try:
            for reader in readers:
                log = VoteLog(folder, reader)
                self._states[reader] = _ReaderState(log)
                refuse_other_votes(log.votes, self.kind, folder=folder)
        except BaseException:
            self.close()
            raise
        for state in self._states.values():
            for vote in state.log.votes if state.log is not None else ():
                apply(state.standing, vote)
        for reader, state in self._states.items():
            for task, _ in state.standing:
                self._takers[task].add(reader)

    def close(self) -> None:
        """Close every reader's file."""
        for state in self._states.values():
            if state.log is not None:
                state.log.close()

    def progress(self, reader: str) -> Advance:
        """How far a reader is."""
        with self._lock:
            candidates = self._candidates(reader)
            upcoming = [task for task, _ in islice(candidates, PRELOADED)]
            left = len(upcoming) + sum(1 for _ in candidates)
            read = sum(task in self._by_id for task, _ in self._states[reader].standing)
            return Advance(read, left, upcoming)

    def open_task(self, reader: str) -> OpenTask | None:
        """What a reader has on screen: the task that is open, or else the next one; None where none is left."""
        with self._lock:
            state = self._states[reader]
            if state.open is None:
                self._open_next(reader)
            return state.open

    def advance(self, reader: str, task: str, turn: int) -> OpenTask | None:
        """Leave a task that was voted on and open the next one."""
        with self._lock:
            if self._opened(reader, task, turn).vote is None:
                raise RefusedVoteError("This task has no vote yet.")
            self._states[reader].open = None
            return self.open_task(reader)

    def vote(
        self,
        reader: str,
        task: str,
        turn: int,
        shown: Shown | ItemChoice,
        *,
        struck: Sequence[tuple[Side, int]] = (),
        typed: str = "",
    ) -> OpenTask:
        """Take a vote on the open task: it is on the disk when this returns. `struck` are sentences by place."""
        with self._lock:
            opened = self._opened(reader, task, turn)
            if opened.vote is not None:
                raise RefusedVoteError("This task has a vote already.")
            opened.refuse_answer(typed)
            self._write(
                reader,
                opened,
                event="vote",
                seconds=round(monotonic() - opened.since, 3),
                choice=opened.meant(shown),
                struck=tuple(opened.strike(side, place) for side, place in struck),
                correct_answer=typed.strip() or None,
            )
            return opened

    def respond(
        self,
        reader: str,
        task: str,
        turn: int,
        *,
        decision: Literal["confirm", "overturn"] | None,
        reason: str = "",
        significant: bool | None = None,
        typed: str = "",
    ) -> OpenTask:
        """Take a response to the expert's verdict on the open task, which was voted on."""
        with self._lock:
            opened = self._opened(reader, task, turn)
            if opened.vote is None:
                raise RefusedVoteError("The expert's verdict is answered after the vote.")
            opened.refuse_answer(typed)
            if isinstance(opened.task, ItemTask):
                if decision is not None:
                    raise RefusedVoteError("No expert has judged this: there is nothing to confirm or overturn.")
            elif decision == "overturn" and opened.vote.blind == opened.task.verdict:
                raise RefusedVoteError("Your vote says what the expert says: undo it before you overturn that.")
            self._write(
                reader,
                opened,
                event="response",
                decision=decision,
                reason=reason.strip(),
                significant=significant if decision == "overturn" else None,
                correct_answer=typed.strip() or None,
            )
            return opened

    def undo(self, reader: str) -> OpenTask:
        """Take back the reader's last vote that stands, and open its task again."""
        with self._lock:
            state = self._states[reader]
            if not state.standing:
                raise RefusedVoteError("There is no vote to take back.")
            (key, turn), last = next(reversed(state.standing.items()))
            if key not in self._by_id:
                raise RefusedVoteError("The last vote is of a task that is no longer drawn.")
            opened = OpenTask(self._by_id[key], turn, last.vote.left, monotonic())
            self._write(reader, opened, event="undo")
            if state.open is not None and state.open.task.id != key:
                self._release(reader, state.open)
            state.open = opened
            self._takers[key].add(reader)
            return opened

    def _opened(self, reader: str, task: str, turn: int) -> OpenTask:
        """The open task, which must be the one that is meant."""
        opened = self._states[reader].open
        if opened is None or (opened.task.id, opened.turn) != (task, turn):
            raise RefusedVoteError("This task is not open.")
        return opened

    def _write(self, reader: str, opened: OpenTask, *, event: Literal["vote", "response", "undo"], **said: object) -> None:
        """Bring what a reader did to the disk, then into this state."""
        state = self._states[reader]
        if state.log is None:
            raise ValueError(f"{reader} is read only")
        vote = ReviewVote.model_validate(
            {
                "id": "",
                "number": 0,
                "event": event,
                "reader": reader,
                "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "task_id": opened.task.id,
                "turn": opened.turn,
                "left": opened.left,
                **said,
            }
        )
        apply(state.standing, state.log.append(vote))
        opened.vote = state.standing.get((opened.task.id, opened.turn))

    def _open_next(self, reader: str) -> None:
        """Open the next task of a reader, if there is one."""
        self._look_at_others()
        task, turn = next(self._candidates(reader), (None, 0))
        if task is not None:
            swapped = isinstance(task, ReviewTask) and not int(content_id("side", reader, task.id, turn), 16) % 2
            left: Literal["first", "second"] = "second" if swapped else "first"
            self._states[reader].open = OpenTask(task, turn, left, monotonic())
            self._takers[task.id].add(reader)

    def _release(self, reader: str, opened: OpenTask) -> None:
        """Give back a task that a reader had open and did not vote on."""
        if (opened.task.id, 0) not in self._states[reader].standing:
            self._takers[opened.task.id].discard(reader)

    def _candidates(self, reader: str) -> Iterator[tuple[AnyTask, int]]:
        """What a reader may be shown, in order, but for the task that is open."""
        state = self._states[reader]
        opened = (state.open.task.id, state.open.turn) if state.open is not None else None
        votes = list(state.standing)
        recent = {key for key, _ in votes[-REPEAT_AFTER:]}
        again = [
            task
            for task in self._repeated
            if (task.id, 0) in state.standing and (task.id, 1) not in state.standing and opened != (task.id, 1)
        ]
        yield from ((task, 1) for task in again if task.id not in recent)
        read = {key for key, turn in state.standing if turn == 0}
        if opened is not None and opened[1] == 0:
            read.add(opened[0])
        for key, task in self._by_id.items():
            if key not in read:
                takers = self._takers.get(key, ())
                if not takers or len(takers) - (reader in takers) < task.readers:
                    yield task, 0
        yield from ((task, 1) for task in again if task.id in recent and votes[-1][0] != task.id)

    def _look_at_others(self) -> None:
        """Take in what readers of other processes have voted on since."""
        for path in (self._folder / VOTES).glob("*.jsonl"):
            state = self._states.setdefault(path.stem, _ReaderState(None))
            if state.log is None and (size := path.stat().st_size) != state.seen:
                if size < state.seen:  # Somebody took lines out of it.
                    self._forget(path.stem, state)
                state.seen = size
                self._take_in(path, state)

    def _take_in(self, path: Path, state: _ReaderState) -> None:
        """Bring what another reader says up to the end of that reader's file."""
        try:
            votes, state.read_to = votes_behind(path, state.read_to)
        except ValidationError:
            if state.read_to:
                self._forget(path.stem, state)
                self._take_in(path, state)
            else:
                # It is refused where its votes count; which tasks are open to others depends little on it.
                logger.warning("%s has lines that are no votes, and is passed over", path)
            return
        for vote in votes:
            apply(state.standing, vote)
            taken = any((vote.task_id, turn) in state.standing for turn in (0, 1))
            (self._takers[vote.task_id].add if taken else self._takers[vote.task_id].discard)(path.stem)

    def _forget(self, reader: str, state: _ReaderState) -> None:
        """Take back what was read of another reader's file."""
        for task, _ in state.standing:
            self._takers[task].discard(reader)
        state.standing.clear()
        state.read_to = 0
