"""JSON objects in a model's words, as models write them. Pure; linear in the length of the text.

Beside JSON that is read: Python's single quotes, quotes inside a text, backslashes of LaTeX, a comma behind the last field.
"""

import json
import re
import sys
from collections.abc import Callable

MOST_OBJECTS = 100
"""JSON objects in a text; more are no reply."""
_OPENS = re.compile(r"\{\s*[\"']")
_STRING = re.compile(
    r"\"(?P<double>(?:[^\"\\]++|\\.|\"(?!\s*[,:}\]]))*+)\"|'(?P<single>(?:[^'\\]++|\\.|'(?!\s*[,:}\]]))*+)'|(?P<rest>[^\"']++)",
    re.DOTALL,
)
_ESCAPES = re.compile(r"\\(u[0-9a-fA-F]{4}|.)|\"", re.DOTALL)
_LAST_COMMA = re.compile(r",(?=\s*[}\]])")


def json_objects(words: str) -> list[tuple[int, dict[str, object]]] | None:
    """The JSON objects in a text in their order, with where they end; None where one has no end or is none."""
    decode: Callable[[str, int], tuple[object, int]] = _DECODER.raw_decode
    found: list[tuple[int, dict[str, object]]] = []
    place = 0
    while (opened := _OPENS.search(words, place)) is not None:
        try:
            value, place = decode(words, opened.start())
        except (ValueError, RecursionError):
            value, place = _read_loosely(words[opened.start() :]), len(words)
        if not isinstance(value, dict) or len(found) == MOST_OBJECTS:
            return None
        found.append((place, value))
    return found


def _unique(fields: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; one with a field twice is none."""
    value = dict(fields)
    if len(value) < len(fields):
        raise ValueError("a field stands twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, strict=False)


def _read_loosely(text: str) -> object:
    """The value of what a model took for JSON; None where that is not plain."""
    pieces: list[str] = []
    place, depth = 0, 0
    while place < len(text):
        piece = _STRING.match(text, place)
        if piece is None:
            return None
        place = piece.end()
        if piece["rest"] is not None:
            depth += sum(map(piece["rest"].count, "{[")) - sum(map(piece["rest"].count, "}]"))
            if depth > sys.getrecursionlimit():
                return None  # The decoder goes no deeper either.
            pieces.append(_LAST_COMMA.sub("", piece["rest"]).replace("None", "null"))
        else:
            inner = piece["double"] if piece["single"] is None else piece["single"]
            pieces.append(f'"{_ESCAPES.sub(_escaped, inner)}"')
    try:
        value: object = _DECODER.decode("".join(pieces))
    except (ValueError, RecursionError):
        return None
    return value


def _escaped(found: re.Match[str]) -> str:
    """A character of a text as JSON has it."""
    if found[1] is None:
        return '\\"'
    if len(found[1]) > 1 or found[1] in '"\\/bfnrt':
        return found[0]
    return found[1] if found[1] == "'" else f"\\\\{found[1]}"
