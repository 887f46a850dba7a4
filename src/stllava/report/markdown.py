"""Pieces of a card in Markdown; nothing that stands in a text means anything to it."""

from collections.abc import Iterable

_MARKUP = {ord(sign): f"\\{sign}" for sign in "\\`*_[]|~#<>&$"}


def plain_text(text: str) -> str:
    """Text on one line in which no sign means anything to Markdown."""
    return " ".join(text.split()).translate(_MARKUP)


def bullets(texts: Iterable[str]) -> str:
    """A list with an item a text."""
    return "\n".join(f"- {plain_text(text)}" for text in texts)


def table_row(cells: Iterable[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(map(plain_text, cells))} |"
