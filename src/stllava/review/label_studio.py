"""Tasks for Label Studio, and its results as votes: for those who have a server of it already.

`to_label_studio` writes the tasks of a review folder as Label Studio imports them, with the labelling interface beside them;
`from_label_studio` reads its JSON export and adds each annotation to the file of its reader. What an expert said leaves with
neither: the annotation is the blind vote. Whoever voted on a task before is not counted again.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stllava.errors import StllavaError
from stllava.records import ReviewTask, ReviewVote, VoteChoice, content_id
from stllava.review.readings import standing
from stllava.review.tasks import read_tasks
from stllava.review.vote_log import VoteLog
from stllava.store import require_file, write_whole

CHOICES: Mapping[str, Literal["left", "right"] | VoteChoice] = {
    "answer 1 is better": "left",
    "answer 2 is better": "right",
    "equal": "equal",
    "both wrong": "both wrong",
    "bad question": "bad question",
    "bad image": "bad image",
    "cannot tell": "cannot tell",
}
_BUTTONS = "\n".join(f'    <Choice value="{label}" hotkey="{key}"/>' for label, key in zip(CHOICES, "120bqix", strict=True))
INTERFACE = f"""<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true" brightnessControl="true" contrastControl="true"/>
  <Header value="$question"/>
  <Header value="Answer 1" size="5"/>
  <Text name="first" value="$answer_1"/>
  <Header value="Answer 2" size="5"/>
  <Text name="second" value="$answer_2"/>
  <Choices name="vote" toName="image" choice="single" required="true">
{_BUTTONS}
  </Choices>
  <TextArea name="correct_answer" toName="image" placeholder="The right answer, if you want to give it" maxSubmissions="1"/>
</View>
"""
"""The labelling interface, to be pasted into the settings of a project."""
Side = Literal["first", "second"]


class _Lenient(BaseModel):
    """What is read of an export; it says much more."""

    model_config = ConfigDict(extra="ignore")


class _Value(_Lenient):
    choices: tuple[str, ...] = ()
    text: tuple[str, ...] | str = ()


class _Result(_Lenient):
    from_name: str = ""
    value: _Value = _Value()


class _Annotator(_Lenient):
    id: int = 0
    email: str = ""


class _Annotation(_Lenient):
    completed_by: int | _Annotator = 0
    result: tuple[_Result, ...] = ()
    was_cancelled: bool = False
    lead_time: float | None = None
    created_at: str = ""


class _Data(_Lenient):
    task_id: str


class _Annotated(_Lenient):
    data: _Data
    annotations: Annotated[tuple[_Annotation, ...], Field(default=())]


@dataclass(frozen=True)
class ImportedVotes:
    """What came of an export."""

    votes: dict[str, int]
    """Votes added, by reader."""
    left_out: Counter[str]
    """Annotations that were not, by cause."""


def to_label_studio(folder: Path, *, to: Path, image_url: str) -> int:
    """Write the tasks of a review folder as JSON, and the labelling interface beside it; returns how many.

    Args:
        folder: The review folder.
        to: The JSON file; the interface is written beside it, with the suffix .xml.
        image_url: What Label Studio puts before an image's path to find it, such as /data/local-files/?d=images/.
    """
    tasks = read_tasks(folder)
    rows = [
        {
            "data": {
                "task_id": task.id,
                "image": f"{image_url}{task.images[0]}" if task.images else "",
                "question": task.question,
                "answer_1": task.texts[_left(task) == "second"],
                "answer_2": task.texts[_left(task) == "first"],
            }
        }
        for task in tasks
    ]
    write_whole(to, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    write_whole(to.with_suffix(".xml"), INTERFACE)
    return len(rows)


def from_label_studio(folder: Path, results: Path) -> ImportedVotes:
    """Add the annotations of a JSON export to the votes of a review folder.

    Args:
        folder: The review folder from which the tasks were written.
        results: Label Studio's export in the form JSON.

    Raises:
        StllavaError: Where the file is no such export, or holds no annotation of these tasks.
    """
    require_file(results, expected="a JSON export of Label Studio")
    try:
        rows = TypeAdapter(tuple[_Annotated, ...]).validate_json(results.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StllavaError(
            f"{results} cannot be read: {first['msg']}{f' at {where}' if where else ''}",
            expected="the JSON export (not JSON-MIN) of a project with tasks of `stllava convert review`",
            remedy="Export the project again in the form JSON.",
        ) from None
    tasks = {task.id: task for task in read_tasks(folder)}
    left_out: Counter[str] = Counter()
    given: dict[str, list[tuple[ReviewTask, _Annotation, VoteChoice]]] = {}
    for row in rows:
        task = tasks.get(row.data.task_id)
        for annotation in row.annotations:
            choice = _choice(task, annotation) if task is not None else None
            if annotation.was_cancelled:
                left_out["skipped"] += 1
            elif task is None:
                left_out["task not known"] += 1
            elif choice is None:
                left_out["no choice"] += 1
            else:
                given.setdefault(_reader(annotation.completed_by), []).append((task, annotation, choice))
    if not given:
        raise StllavaError(
            f"{results} holds no vote on the tasks of {folder}: {dict(left_out) or 'it is empty'}",
            expected="annotations of these tasks",
            remedy="Name the review folder from which the tasks were written.",
        )
    added = {reader: _add(folder, reader, annotated, left_out) for reader, annotated in sorted(given.items())}
    return ImportedVotes(added, left_out)


def _add(
    folder: Path, reader: str, annotated: Sequence[tuple[ReviewTask, _Annotation, VoteChoice]], left_out: Counter[str]
) -> int:
    """Add one reader's annotations to the reader's file, and count those that add nothing."""
    log = VoteLog(folder, reader)
    try:
        known = {task for task, _ in standing(log.votes)}
        added = 0
        for task, annotation, choice in annotated:
            if task.id in known:
                left_out["voted before"] += 1
                continue
            number = len(log.votes) + 1
            log.append(
                ReviewVote(
                    id=content_id("review vote", reader, number),
                    number=number,
                    event="vote",
                    reader=reader,
                    at=_moment(annotation.created_at),
                    task_id=task.id,
                    seconds=_seconds(annotation.lead_time),
                    left=_left(task),
                    choice=choice,
                    correct_answer=_typed(annotation),
                )
            )
            known.add(task.id)
            added += 1
        return added
    finally:
        log.close()


def _left(task: ReviewTask) -> Side:
    """Which answer stands first: by chance, the same for all who annotate it."""
    return "first" if int(content_id("side", "label studio", task.id), 16) % 2 else "second"


def _choice(task: ReviewTask, annotation: _Annotation) -> VoteChoice | None:
    """What an annotation says of the task's answers; None where it says nothing."""
    said = next((row.value.choices for row in annotation.result if row.from_name == "vote"), ())
    choice = CHOICES.get(said[0]) if len(said) == 1 else None
    left = _left(task)
    if choice == "left":
        return left
    if choice == "right":
        return "second" if left == "first" else "first"
    return choice


def _typed(annotation: _Annotation) -> str | None:
    """The right answer, where one was typed."""
    text = next((row.value.text for row in annotation.result if row.from_name == "correct_answer"), "")
    return (text if isinstance(text, str) else " ".join(text)).strip() or None


def _reader(annotator: int | _Annotator) -> str:
    """The name of a reader: what stands before the @ of an address, or the annotator's number."""
    if isinstance(annotator, int):
        return f"annotator{annotator}"
    name = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in annotator.email.partition("@")[0])
    return name.lstrip("-_")[:64] or f"annotator{annotator.id}"


def _seconds(lead_time: float | None) -> float:
    return round(lead_time, 3) if lead_time is not None and math.isfinite(lead_time) and lead_time > 0 else 0.0


def _moment(text: str) -> str:
    """When an annotation was made, as votes note it; now, where it does not say."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="milliseconds")
    except ValueError:
        return datetime.now(UTC).isoformat(timespec="milliseconds")
