"""Tables in HTML, as notebooks show records. Every text is escaped, whoever wrote it."""

from collections.abc import Iterable, Sequence
from html import escape

from stllava.text import shorten

LONGEST = 300
"""Characters of a text that are shown."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """A table of plain texts: a row of `head` cells, then `rows`."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(shorten(cell, LONGEST))}</td>' for cell in row)}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
