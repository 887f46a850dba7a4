"""Reads a user's own questions wherever samples are asked for: a table with a header, JSON lines, or a JSON list.

    from stllava.data.benchmarks.own import read_samples
    samples, notes = read_samples(Path("labels.csv"))

Columns, in any case: image (or image_path, img, file_name) and question; answer, or targets (any is right); if they are there
id, choices (or columns A, B, …), answer_type or kind (open or closed), split ("test" without), labels (JSON only: an object).
A list is JSON, or texts with | between them. Every other column is a label. Without a kind, a question with choices, or
answered yes or no, is closed. Without an id, a question is named by its content. JSON lines of `Sample` are read as they are.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase

from stllava.data.benchmarks.rows import Found, Row, chosen, named_kind, samples_of, told_kind
from stllava.data.tables import Table, bad_row, read_table
from stllava.data.turns import PLACEHOLDER, parsed
from stllava.errors import ItemError, StllavaError
from stllava.records import MAX_CHOICES, Sample
from stllava.store import read_jsonl

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt")
_IMAGE = ("image", "image_path", "img", "img_path", "image_name", "file_name", "filename")
_ANSWER = ("answer", "targets", "answers")
_OTHERS = ("id", "question", "choices", "answer_type", "kind", "split", "labels")
_NAMES = (*_IMAGE, *_ANSWER, *_OTHERS)
_MOST_STRANGE = 0.05
"""Share of rows whose answer may be none of their choices."""
_NEEDED = frozenset(name for name, field in Sample.model_fields.items() if field.is_required())


def find_own(name: str, path: Path) -> Found:
    """The questions of one file by split."""
    rows, notes = read_rows(path)
    by_split: dict[str, list[Row]] = {}
    for row in rows:
        by_split.setdefault(row.split or "test", []).append(row)
    splits = {split: samples_of(name, split, some) for split, some in by_split.items()}
    return Found("own", splits, (path,), notes=(*notes, _told(path, rows)))


def read_samples(path: Path, *, split: str = "test") -> tuple[list[Sample], tuple[str, ...]]:
    """The samples of a file, whatever their splits (`split` where a row names none), and what was told of its form."""
    if path.suffix == ".jsonl" and path.is_file() and not path.stat().st_size:
        return [], ()  # What a stage writes that has none, as an imported set without references.
    if path.is_file() and _holds_samples(path):
        return read_jsonl(path, Sample), ()
    rows, notes = read_rows(path)
    fit = [row for row in rows if not row.choices or {*row.targets} <= {*row.choices}]
    if len(fit) < len(rows):
        notes += (_without_choice(path, [row for row in rows if row not in fit], rows),)
    return list(samples_of(path.stem, split, fit)), (*notes, _told(path, fit))


def _holds_samples(path: Path) -> bool:
    """Whether a file is JSON lines of `Sample` records in UTF-8; told line by line, so that none of it is held."""
    line = b""
    with path.open("rb") as file:
        for line in filter(bytes.strip, file):
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                return False
            if not (isinstance(row, dict) and row.keys() >= _NEEDED):
                return False
    return bool(line)


def read_rows(path: Path, *, answers: bool = True) -> tuple[list[Row], tuple[str, ...]]:
    """Every row of a file, and what was told of its form; with `answers` each must have a column of them."""
    table = _table(path)
    if table.form == "table":
        _require_columns(path, table, answers=answers)
    rows: list[Row] = []
    numbers: dict[str, int] = {}
    for number, raw in table.rows:
        row = row_of(path, number, raw, answers=answers)
        if row.id is not None:
            if row.id in numbers:
                found = f"id {row.id!r} is the id of row {numbers[row.id]} already"
                raise bad_row(path, number, found, expected="each id once")
            numbers[row.id] = number
        rows.append(row)
    _require_columns(path, table, answers=answers)
    return rows, table.notes


def _require_columns(path: Path, table: Table, *, answers: bool) -> None:
    """Refuse a file none of whose rows has an image, or a question, or an answer where it is wanted."""
    columns = table.columns()
    for what, known in (("image", _IMAGE), ("question", ("question",)), *((("answer", _ANSWER),) if answers else ())):
        if not set(known) & set(columns):
            raise StllavaError(
                f"{path} has no column {what}; it has {', '.join(columns)}",
                expected=f"the columns image, question{' and answer' if answers else ''}",
                remedy=f"Rename the column of the {what}, or check that it is the file that you mean.",
            )


def _table(path: Path) -> Table:
    return read_table(path, names=_NAMES, kinds="questions (CSV or TSV with a header, or JSON)")


def _told(path: Path, rows: Sequence[Row]) -> str:
    """What was derived of questions that are no `Sample` records."""
    closed, bare = sum(row.kind == "closed" for row in rows), sum(row.id is None for row in rows)
    named = f"; {bare} without an id are named by their content" if bare else ""
    return f"{path.name}: {len(rows)} questions, {closed} of them closed (by their kind, choices, or answer yes or no){named}."


def _without_choice(path: Path, strange: Sequence[Row], rows: Sequence[Row]) -> str:
    """A sentence on rows that no answer could be right on; many of them are refused."""
    first = strange[0]
    found = (
        f"{len(strange)} of {len(rows)} rows of {path} have an answer that is none of their choices: "
        f"{first.question!r} has {', '.join(map(repr, first.targets))} for {', '.join(map(repr, first.choices))}"
    )
    if len(strange) > _MOST_STRANGE * len(rows):
        raise StllavaError(
            found, expected="one of the choices, or its letter", remedy="Write the choice instead of its number."
        )
    return f"{found}; they are left out."


def row_of(path: Path, number: int, raw: Mapping[str, object], *, answers: bool = True) -> Row:
    """A row of a file, by its columns, as a question; `answers` says that it must have one."""
    column = next((name for name in _IMAGE if name in raw), "image")
    if answers and not any(name in raw for name in _ANSWER):
        raise bad_row(path, number, f"neither answer nor targets among {', '.join(raw)}", expected="one of them")
    for key in ("id", column, "question", "answer"):
        if not isinstance(raw.get(key), str | int | float | None) or isinstance(raw.get(key), bool):
            raise bad_row(path, number, f"{key} is a {type(raw[key]).__name__}", expected="a text (several: in targets)")
    letters = _lettered(raw)
    try:
        choices = _texts(raw, "choices") or tuple(_text(raw, letter) for letter in letters)
        given = _texts(raw, "targets") or _texts(raw, "answers") or tuple(filter(None, (_text(raw, "answer"),)))
    except ItemError as error:
        raise bad_row(path, number, str(error), expected="texts, or objects with an answer") from None
    if len(choices) > MAX_CHOICES:
        raise bad_row(path, number, f"{len(choices)} choices", expected=f"at most {MAX_CHOICES}, a letter each")
    targets = tuple(dict.fromkeys(chosen(choices, answer) or answer for answer in given))
    kind = _text(raw, "answer_type") or _text(raw, "kind")
    extra = raw.get("labels")
    others = {str(key): value for key, value in extra.items()} if isinstance(extra, dict) else {}
    others |= {key: value for key, value in raw.items() if key not in (column, *_ANSWER, *_OTHERS, *letters)}
    return Row(
        image=_text(raw, column),
        question=" ".join(_text(raw, "question").split(PLACEHOLDER)).strip(),  # The image comes first, wherever it stood.
        targets=targets,
        kind=named_kind(path, number, kind) if kind else told_kind(targets, choices),
        id=_text(raw, "id") or None,
        choices=choices,
        labels={key: text for key in others if (text := _text(others, key))},
        split=_text(raw, "split"),
    )


def _text(raw: Mapping[str, object], key: str) -> str:
    value = raw.get(key)
    # pandas writes what is not there as NaN, in JSON too; in tables see `read_table`.
    return "" if value is None or value != value else str(value).strip()


def _texts(raw: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = raw.get(key)
    if isinstance(value, str):
        listed = parsed(value)
        value = listed if isinstance(listed, list) else value.split("|")
    values = [
        one.get("answer", one) if isinstance(one, dict) else one for one in (value if isinstance(value, list) else [value])
    ]
    for one in values:
        if isinstance(one, list | dict):
            raise ItemError("malformed", f"{key} holds a {type(one).__name__}")
    return tuple(text for one in values if one is not None and one == one and (text := str(one).strip()))


def _lettered(raw: Mapping[str, object]) -> tuple[str, ...]:
    """The columns A, B, … of choices, as the tables of MMBench have them, where no other column holds choices."""
    if "choices" in raw or not {"A", "B"} <= raw.keys():
        return ()
    return tuple(itertools.takewhile(lambda letter: bool(_text(raw, letter)), ascii_uppercase))
