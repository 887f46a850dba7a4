"""Text of others, on the terminal above all: what a server, a model or a file says is shown, never obeyed.

An escape sequence can rename a window, write to the clipboard or rewrite lines that stand above it, a carriage return
hides what stood before it, and a bidirectional override shows a text in another order than it has. Everything that the
command line prints goes through here. Writes to the terminal only.
"""

import sys
from collections.abc import Sequence
from typing import TextIO

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
"""Control characters of one byte and of eight-bit terminals, and separators that some terminals take for line breaks."""
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Marks, embeddings, overrides and isolates of the bidirectional algorithm."""
_SURROGATES = range(0xD800, 0xE000)
"""Halves of characters, which no encoding of a terminal can write."""
_WRITTEN = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*_CONTROLS, *_DIRECTIONS, *_SURROGATES)
    if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    r"""The text with what a terminal would obey written as `\x1b`, `\x0d` or `\u202e`; line breaks and tabs stay."""
    return text.replace("\r\n", "\n").translate(_WRITTEN)


def shorten(text: str, limit: int) -> str:
    """The text on one line, cut at a length."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and its noun, as in `1 pair` and `2 pairs`; `plural` is for nouns that take more than an s."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def aligned(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Rows of a table as lines whose columns stand below each other; with `numbers`, all but the first end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if numbers and place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def show(*texts: object, stream: TextIO | None = None, end: str = "\n") -> None:
    """Write each text on a line of its own to the standard output, or to `stream`, without anything a terminal obeys."""
    out = stream if stream is not None else sys.stdout
    out.write("\n".join(printable(str(text)) for text in texts) + end)
    out.flush()
