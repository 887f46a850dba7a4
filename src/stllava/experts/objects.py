"""JSON objects in a model's words, in double quotes or in Python's single ones. Pure; linear in the length of the text."""

import json
import re
from collections.abc import Callable

MOST_OBJECTS = 100
"""JSON objects in a text; more are no reply."""
_OPENS = re.compile(r"\{\s*[\"']")
_STRING = re.compile(
    r"(?P<double>\"(?:[^\"\\]++|\\.)*+\")|'(?P<single>(?:[^'\\]++|\\.|'(?!\s*[,:}\]]))*+)'|(?P<rest>[^\"']++)", re.DOTALL
)
_ESCAPES = re.compile(r"\\(.)|(\")", re.DOTALL)


def json_objects(words: str) -> list[tuple[int, dict[str, object]]] | None:
    """The JSON objects in a text in their order, with where they end; None where one has no end or is none."""
    decode: Callable[[str, int], tuple[object, int]] = _DECODER.raw_decode
    found: list[tuple[int, dict[str, object]]] = []
    place = 0
    while (opened := _OPENS.search(words, place)) is not None:
        try:
            value, place = decode(words, opened.start())
        except (ValueError, RecursionError):
            value, place = _single_quoted(words[opened.start() :]), len(words)
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


def _single_quoted(text: str) -> object:
    """The value of JSON with strings in single quotes, as Python writes them; None where it is none."""
    pieces: list[str] = []
    place = 0
    while place < len(text):
        piece = _STRING.match(text, place)
        if piece is None:
            return None
        place = piece.end()
        if piece["single"] is not None:
            pieces.append('"' + _ESCAPES.sub(_escaped, piece["single"]) + '"')
        else:
            pieces.append(piece["double"] or piece["rest"].replace("None", "null"))
    try:
        value: object = _DECODER.decode("".join(pieces))
    except (ValueError, RecursionError):
        return None
    return value


def _escaped(found: re.Match[str]) -> str:
    return '\\"' if found[2] else found[1] if found[1] == "'" else found[0]
