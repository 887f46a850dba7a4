"""Label Studio's results as votes: reads its JSON export and adds each annotation to the file of its reader.

Whoever voted on a task before is not counted again; an annotation that was changed since takes its earlier vote back.
"""

import math
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from stllava.errors import StllavaError
from stllava.records import ItemChoice, ReviewVote, VoteChoice
from stllava.review.choices import LONGEST_ANSWER, ReviewKind, refuse_other_votes
from stllava.review.items import read_items
from stllava.review.label_studio import CHOICES, TYPED_KINDS, left_answer, shown_data
from stllava.review.open_task import AnyTask
from stllava.review.readings import StandingVote, standing
from stllava.review.tasks import read_tasks
from stllava.review.vote_log import LONGEST_NAME, VoteLog
from stllava.store import require_file


class _Lenient(BaseModel):
    """What is read of an export; it says much more."""

    model_config = ConfigDict(extra="ignore")


class _Vote(_Lenient):
    choices: tuple[str, ...] = ()


class _Typed(_Lenient):
    text: tuple[str, ...] | str = ()


class _Annotator(_Lenient):
    id: int = 0
    email: str | None = None


class _Annotation(_Lenient):
    id: int | None = None
    completed_by: int | str | _Annotator | None = None
    result: tuple[JsonValue, ...] = ()
    """Of every control in the project's interface, which may have others than ours."""
    was_cancelled: bool = False
    lead_time: float | None = None
    created_at: str | None = None
    updated_at: str | None = None


class _Data(BaseModel):
    """What annotators were shown; projects may add more."""

    model_config = ConfigDict(extra="allow")
    task_id: str

    def shows(self, task: AnyTask) -> bool:
        """Whether that is what was written of the task; where its image lies, servers may say otherwise."""
        found = self.model_extra or {}
        return all(found.get(name) == text for name, text in shown_data(task).items())


class _Annotated(_Lenient):
    data: _Data
    annotations: tuple[_Annotation, ...] = ()


_UNSAID = {"choice": None, "correct_answer": None, "annotation": None, "seconds": 0.0}
"""What of a vote its undo does not say."""
V = TypeVar("V", _Vote, _Typed)


@dataclass(frozen=True)
class ImportedVotes:
    """What came of an export."""

    votes: dict[str, int]
    """Votes added, by reader, those among them that replace an earlier one."""
    changed: int
    """Votes that replace one of an earlier export, whose annotation was changed since."""
    left_out: Counter[str]
    """Annotations that were not, by cause."""


def from_label_studio(folder: Path, results: Path, kind: ReviewKind) -> ImportedVotes:
    """Add the annotations of a JSON export to the votes of a review folder.

    Args:
        folder: The review folder from which the tasks were written.
        results: Label Studio's export in the form JSON.
        kind: What its tasks are about.

    Raises:
        StllavaError: Where the file is no such export, or holds no annotation of these tasks.
    """
    require_file(results, expected="a JSON export of Label Studio")
    try:
        rows = TypeAdapter(tuple[_Annotated, ...]).validate_json(results.read_bytes().removeprefix(BOM_UTF8))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StllavaError(
            f"{results} cannot be read: {first['msg']}{f' at {where}' if where else ''}",
            expected="the JSON export (not JSON-MIN) of a project with tasks of `stllava convert review`",
            remedy="Export the project again in the form JSON.",
        ) from None
    drawn: Sequence[AnyTask] = read_tasks(folder) if kind == "verdicts" else read_items(folder)
    tasks = {task.id: task for task in drawn}
    _refuse_shared_names(annotation.completed_by for row in rows for annotation in row.annotations)
    left_out: Counter[str] = Counter()
    given: dict[str, list[tuple[AnyTask, _Annotation, VoteChoice | ItemChoice]]] = {}
    for row in rows:
        task = tasks.get(row.data.task_id)
        for annotation in row.annotations:
            choice = _choice(task, annotation, kind) if task is not None else None
            if annotation.was_cancelled:
                left_out["skipped"] += 1
            elif task is None:
                left_out["task not known"] += 1
            elif not row.data.shows(task):
                left_out["shown otherwise than the task"] += 1
            elif choice is None:
                left_out["no choice"] += 1
            elif len(_typed(annotation) or "") > LONGEST_ANSWER:
                left_out[f"answer of more than {LONGEST_ANSWER:,} letters"] += 1
            else:
                given.setdefault(_name(annotation.completed_by), []).append((task, annotation, choice))
    if not given:
        raise StllavaError(
            f"{results} holds no vote on the tasks of {folder}: {by_cause(left_out) or 'it has no annotations'}",
            expected="annotations of these tasks",
            remedy="Name the review folder from which the tasks were written.",
        )
    added = {reader: _add(folder, reader, annotated, left_out, kind) for reader, annotated in sorted(given.items())}
    return ImportedVotes(
        votes={reader: counts.total() for reader, counts in added.items()},
        changed=sum(counts["changed"] for counts in added.values()),
        left_out=left_out,
    )


def by_cause(left_out: Mapping[str, int]) -> str:
    """What was left out, by cause, in words."""
    return ", ".join(f"{count} {cause}" for cause, count in left_out.items())


def _add(
    folder: Path,
    reader: str,
    annotated: Sequence[tuple[AnyTask, _Annotation, VoteChoice | ItemChoice]],
    left_out: Counter[str],
    kind: ReviewKind,
) -> Counter[Literal["new", "changed"]]:
    """Add one reader's annotations to the reader's file, and count them, and those that add nothing."""
    log = VoteLog(folder, reader)
    try:
        refuse_other_votes(log.votes, kind, folder=folder)
        stands = {task: reading for (task, turn), reading in standing(log.votes).items() if turn == 0}
        added: Counter[Literal["new", "changed"]] = Counter()
        for task, annotation, choice in annotated:
            vote = ReviewVote(
                id="",
                number=1,
                event="vote",
                reader=reader,
                at=_moment(annotation.updated_at or annotation.created_at or ""),
                task_id=task.id,
                seconds=_seconds(annotation.lead_time),
                left=left_answer(task),
                choice=choice,
                annotation=annotation.id,
                correct_answer=_typed(annotation) if kind in TYPED_KINDS else None,
            )
            before = stands.get(task.id)
            if before is not None:
                if not _is_changed(before, vote):
                    left_out["voted before"] += 1
                    continue
                log.append(vote.model_copy(update={"event": "undo", "at": _moment(""), **_UNSAID}))
            log.append(vote)
            added["new" if before is None else "changed"] += 1
            stands[task.id] = StandingVote(vote)
        return added
    finally:
        log.close()


def _is_changed(before: StandingVote, now: ReviewVote) -> bool:
    """Whether the annotation that gave a vote was changed since; what was said of the task on the page stands."""
    vote = before.vote
    if before.response is not None or vote.annotation is None or vote.annotation != now.annotation:
        return False
    said = (now.choice, now.correct_answer) != (vote.choice, vote.correct_answer)
    return said and datetime.fromisoformat(now.at) > datetime.fromisoformat(vote.at)


def _value(annotation: _Annotation, control: str, kind: type[V]) -> V:
    """What was entered in one of our controls; of none, or of something else under its name, an empty value."""
    for entry in annotation.result:
        if isinstance(entry, dict) and entry.get("from_name") == control:
            try:
                return kind.model_validate(entry.get("value", {}))
            except ValidationError:
                continue  # Another control of that name.
    return kind()


def _choice(task: AnyTask, annotation: _Annotation, kind: ReviewKind) -> VoteChoice | ItemChoice | None:
    """What an annotation says of a task; None where it says nothing."""
    said = _value(annotation, "vote", _Vote).choices
    choice = CHOICES[kind].get(said[0]) if len(said) == 1 else None
    left = left_answer(task)
    if choice == "left":
        return left
    # "right" is a place of two answers, and a verdict on one.
    if choice == "right" and kind == "verdicts":
        return "second" if left == "first" else "first"
    return choice


def _typed(annotation: _Annotation) -> str | None:
    """The right answer, where one was typed."""
    text = _value(annotation, "correct_answer", _Typed).text
    return (text if isinstance(text, str) else " ".join(text)).strip() or None


def _address(annotator: int | str | _Annotator | None) -> tuple[int, str]:
    """What tells annotators apart: number and address."""
    if isinstance(annotator, _Annotator):
        return annotator.id, annotator.email or ""
    return (annotator or 0, "") if not isinstance(annotator, str) else (0, annotator)


def _name(annotator: int | str | _Annotator | None) -> str:
    """The name of a reader: the whole address, so that it is the same in every export, or a number where there is none."""
    number, address = _address(annotator)
    # Case is nothing by which addresses are told apart, nor are readers' names on every disk.
    return _plain(address.lower()) or f"annotator{number}"


def _plain(text: str) -> str:
    """A text in letters that the name of a file may have: letters, digits, - and _ stay, all else becomes -."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in text).lstrip("-_")[:LONGEST_NAME]


def _refuse_shared_names(annotators: Iterable[int | str | _Annotator | None]) -> None:
    """Refuse two annotators whose votes would go to one file."""
    found: dict[str, tuple[int, str]] = {}
    for annotator in annotators:
        name, address = _name(annotator), _address(annotator)
        other = found.setdefault(name, address)
        if other[1].lower() != address[1].lower():
            raise StllavaError(
                f"the annotators {other[1]} and {address[1]} would both be the reader {name}",
                expected="addresses that differ in letters, digits, - or _",
                remedy="Export the annotations of each of them by themselves, one with another address.",
            )


def _seconds(lead_time: float | None) -> float:
    return round(lead_time, 3) if lead_time is not None and math.isfinite(lead_time) and lead_time > 0 else 0.0


def _moment(text: str) -> str:
    """When an annotation was made, as votes note it; now, where it does not say."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return datetime.now(UTC).isoformat(timespec="milliseconds")
