"""Tables in HTML, as notebooks show records and options. Every text is escaped, whoever wrote it."""

from collections.abc import Iterable, Sequence
from html import escape

from pydantic import BaseModel

from stllava.text import shorten

EMPTY: tuple[object, ...] = (None, "", (), [], {})
"""Values that hold nothing."""
LONGEST = 300
"""Characters of a text that are shown."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", *, left: bool = False) -> str:
    """A table of plain texts: a row of `head` cells, then `rows`; with `left`, cells begin at the left, as words do."""
    place = ' style="text-align: left"' if left else ""
    top = "".join(f"<th{place}>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td{place}>{_lines(cell)}</td>' for cell in row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _lines(cell: str) -> str:
    return "<br>".join(escape(shorten(line, LONGEST)) for line in cell.split("\n"))


def table_of(model: BaseModel) -> str:
    """A row for each field that holds something, with its name and value."""
    fields = ((name, getattr(model, name)) for name in type(model).model_fields)
    rows = [(name, cell_of(value)) for name, value in fields if value not in EMPTY]
    return table(("", type(model).__name__), rows, left=True)


def cell_of(value: object) -> str:
    """A value as words: texts of a list line by line, its numbers on one, what has fields by them, numbers to four digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return (", " if all(isinstance(one, int | float) for one in value) else "\n").join(map(cell_of, value))
    if isinstance(value, BaseModel):
        fields = ((name, getattr(value, name)) for name in type(value).model_fields)
        return ", ".join(f"{name}: {cell_of(one)}" for name, one in fields if one not in EMPTY)
    return str(value)
