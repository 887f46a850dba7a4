"""Reads a user's own questions: JSON objects line by line (.jsonl), or a CSV file (.csv) with a header.

Columns: image and question; answer, or targets (any is right); if they are there id, choices, answer_type or kind (open
or closed), split ("test" without), labels (JSON only: an object). A list is JSON, or texts with | between them. Every
other column is a label. Without a kind, a question with choices, or answered yes or no, is closed. Images are relative to
the file's folder. `Sample` records are such rows too.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from stllava.data.benchmarks.rows import Found, Row, bad_row, chosen, csv_rows, named_kind, samples_of, told_kind
from stllava.errors import StllavaError

SUFFIXES = (".jsonl", ".csv")
_KNOWN = frozenset({"id", "image", "question", "answer", "targets", "choices", "answer_type", "kind", "split", "labels"})


def find_own(name: str, path: Path) -> Found:
    """The questions of one file by split."""
    rows: dict[str, list[Row]] = {}
    numbers: dict[str, int] = {}
    lines: list[tuple[int, Mapping[str, object]]]
    lines = list(enumerate(csv_rows(path, ("image", "question")), 1)) if path.suffix == ".csv" else _json_lines(path)
    for number, raw in lines:
        row = _row(path, number, raw)
        if row.id is not None:
            if row.id in numbers:
                found = f"id {row.id!r} is the id of row {numbers[row.id]} already"
                raise bad_row(path, number, found, expected="each id once")
            numbers[row.id] = number
        rows.setdefault(_text(raw, "split") or "test", []).append(row)
    if not rows:
        raise StllavaError(f"{path} has no rows", expected="at least one question", remedy="Check the file.")
    return Found("own", {split: samples_of(name, split, some) for split, some in rows.items()}, (path,))


def _json_lines(path: Path) -> list[tuple[int, Mapping[str, object]]]:
    """The objects of a JSONL file with their line numbers."""
    rows: list[tuple[int, Mapping[str, object]]] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except ValueError as error:
            raise bad_row(path, number, str(error), expected="one JSON object a line") from None
        if not isinstance(raw, dict):
            raise bad_row(path, number, f"it is a {type(raw).__name__}", expected="one JSON object a line")
        rows.append((number, raw))
    return rows


def _row(path: Path, number: int, raw: Mapping[str, object]) -> Row:
    if "answer" not in raw and "targets" not in raw:
        raise bad_row(path, number, "neither answer nor targets", expected="one of them")
    for key in ("id", "image", "question", "answer"):
        if not isinstance(raw.get(key), str | int | float | None) or isinstance(raw.get(key), bool):
            raise bad_row(path, number, f"{key} is a {type(raw[key]).__name__}", expected="a text (several: in targets)")
    choices = _texts(raw, "choices")
    answers = _texts(raw, "targets") or tuple(filter(None, (_text(raw, "answer"),)))
    targets = tuple(chosen(choices, answer) or answer for answer in answers)
    kind = _text(raw, "answer_type") or _text(raw, "kind")
    extra = raw.get("labels")
    others = {str(key): value for key, value in extra.items()} if isinstance(extra, dict) else {}
    others |= {key: value for key, value in raw.items() if key not in _KNOWN}
    return Row(
        image=_text(raw, "image"),
        question=_text(raw, "question"),
        targets=targets,
        kind=named_kind(path, number, kind) if kind else told_kind(targets, choices),
        id=_text(raw, "id") or None,
        choices=choices,
        labels={key: text for key in others if (text := _text(others, key))},
    )


def _text(raw: Mapping[str, object], key: str) -> str:
    value = raw.get(key)
    return "" if value is None else str(value).strip()


def _texts(raw: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = raw.get(key)
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None
        value = parsed if isinstance(parsed, list) else value.split("|")
    values = value if isinstance(value, list) else [value]
    return tuple(text for one in values if one is not None and (text := str(one).strip()))
