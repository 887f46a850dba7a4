"""What all readers of benchmarks share: a row in our terms, and how its id, kind and right choice are told.

Reads JSON and CSV files row by row; writes nothing. What is wrong with a row is a `StllavaError` that names it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from stllava.data.tables import bad_row, read_list, read_table
from stllava.errors import StllavaError
from stllava.metrics.robust import is_yes_no, normalise
from stllava.records import QuestionKind, Sample, content_id

M = TypeVar("M", bound=BaseModel)

_KINDS: dict[str, QuestionKind] = {"OPEN": "open", "CLOSED": "closed"}


@dataclass(frozen=True)
class Row:
    """A question in our terms, as `Sample` has them, before it has an id that is its own."""

    image: str
    """Path relative to the root; empty where the benchmark names none."""
    question: str
    targets: tuple[str, ...]
    kind: QuestionKind
    id: str | None = None
    """The id the benchmark gives it, where it does."""
    choices: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    split: str = ""
    """The split that the row itself names; empty where the file or folder says it."""


@dataclass(frozen=True)
class Found:
    """What a reader found in a folder: every row, usable or not."""

    layout: str
    """Which form of the benchmark it is; published figures are known by it."""
    splits: dict[str, tuple[Sample, ...]]
    files: tuple[Path, ...]
    """The files of questions."""
    packed: bool = False
    """Whether the images are inside these files."""
    aside: frozenset[str] = frozenset()
    """Splits that are taken only when they are named."""
    notes: tuple[str, ...] = ()
    """Sentences for the reader of the results."""


def samples_of(benchmark: str, split: str, rows: Sequence[Row]) -> tuple[Sample, ...]:
    """The rows with an id each: the benchmark's own, or the hash of the content where that is no row's alone.

    Rows alike in everything, the benchmark's id among it, are one; without such an id they are told by a count.
    """
    times = Counter(row.id for row in rows)
    seen: Counter[str] = Counter()
    samples: dict[str, Sample] = {}
    for row in rows:
        if row.id is not None and times[row.id] == 1:
            key = row.id
        else:
            key = content_id(benchmark, row.image, row.question, *row.targets, row.kind)
            if row.id is None:
                seen[key] += 1
                key = content_id(key, seen[key]) if seen[key] > 1 else key
        samples[key] = Sample(
            id=key,
            image=row.image,
            question=row.question,
            targets=row.targets,
            kind=row.kind,
            split=row.split or split,
            choices=row.choices,
            labels=row.labels,
        )
    return tuple(samples.values())


def json_rows(path: Path, kind: type[M]) -> list[M]:
    """The rows of a JSON list, each checked; a row that lacks something is refused by number."""
    return [checked(path, number, raw, kind) for number, raw in enumerate(read_list(path, kinds="questions"), 1)]


def checked(path: Path, number: int, raw: object, kind: type[M]) -> M:
    """One row with the keys that are used of it."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "row"
        needed = ", ".join(name for name, info in kind.model_fields.items() if info.is_required())
        raise bad_row(path, number, f"{key}: {first['msg']}", expected=f"rows with the keys {needed}") from None


def csv_rows(path: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table by column name, all texts stripped; a file without the needed columns is refused."""
    table = read_table(path, names=needed, kinds="questions")
    lacking = [name for name in needed if name not in table.columns()]
    if lacking:
        raise StllavaError(
            f"{path} has no column {', '.join(lacking)}",
            expected=f"the columns {', '.join(needed)} in its first line",
            remedy="Check that it is the file that you mean.",
        )
    return [{name: str(value) for name, value in row.items()} for _, row in table.rows]


def named_kind(path: Path, number: int, text: str) -> QuestionKind:
    """open or closed as the row says it."""
    kind = _KINDS.get(text.strip().upper())
    if kind is None:
        raise bad_row(path, number, f"answer_type is {text!r}", expected="OPEN or CLOSED")
    return kind


def told_kind(targets: Sequence[str], choices: Sequence[str] = ()) -> QuestionKind:
    """closed when there are choices or every answer is yes or no."""
    return "closed" if choices or (targets and all(is_yes_no(target) for target in targets)) else "open"


def chosen(choices: Sequence[str], answer: str) -> str | None:
    """The one choice that an answer means: equal to it, equal once normalised, or at the place of its letter."""
    said, words = answer.strip(), normalise(answer)
    if said in choices:
        return said
    alike = {choice for choice in choices if words and normalise(choice) == words}
    if alike:
        return alike.pop() if len(alike) == 1 else None
    place = ascii_uppercase.find(said.upper()) if len(said) == 1 else -1
    return choices[place] if 0 <= place < len(choices) else None


def given(labels: Mapping[str, str | None]) -> dict[str, str]:
    """The labels that say something."""
    return {name: text.strip() for name, text in labels.items() if text and text.strip()}


def first_folder(root: Path, names: Sequence[str]) -> str:
    """The first of these folders that is there; the first of all where none is."""
    return next((name for name in names if (root / name).is_dir()), names[0])
