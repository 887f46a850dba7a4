"""Rows and turns as others write them: LLaVA's {"from", "value"}, and {"role", "content"} as chat interfaces and TRL do.

    turns = turns_of(row["conversations"], column="conversations", speaker="user")
    messages = messages_of(turns, images=images_of(row, root=None), told=Counter())

Reads rows, writes nothing. What is wrong with one row is an `ItemError` whose cause is counted: malformed, unknown speaker,
no image, image inside the row, image by URL, image outside a question, more places than images, no turns, empty text, odd
order, a turn not to be learned, marked as bad, and the name of a column that holds what is not read (video, tools, …).
"""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import JsonValue

from stllava.data.cells import IMAGE_COLUMNS, blank, paths_of, relative_path, text_of
from stllava.dropped import Dropped
from stllava.errors import ItemError
from stllava.records import Conversation, Message, Preference, Role, content_id

R = TypeVar("R", Conversation, Preference)

PLACEHOLDER = "<image>"
SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "vuser": "virtual_user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
}
"""Who speaks, as LLaVA (human, gpt), SQ-LLaVA (vuser), Gemma (model), ShareGPT's readers and chat interfaces say it."""

SYSTEM_COLUMNS = ("system", "system_prompt")
TOLD_LONE, TOLD_PLACES, TOLD_MARKS = "text alone", "places", "marks"
"""What `messages_of` counts of rows that it reads though they are not quite what they seem."""

_SPEAKER, _SAID = ("from", "role", "speaker"), ("value", "content", "text")
_MEDIA = ("video", "videos", "audio", "audios", "tools", "objects")
"""Columns without whose content a row means something else: a row where one is filled is not learned from."""
_LEARNED = ("loss", "weight", "train", "training")
"""What ms-swift, OpenAI and axolotl set to false or 0 in a turn that is not to be learned."""
_VERDICTS = ("label", "kto_tag")
_INLINE = re.compile(
    r"<(?:img|video|audio|IMAGE|ImageHere|image-placeholder|start_of_image|im_start)>|<image[ _-]?\d{1,3}>|\[IMG\]|"
    r"<\|(?:image|video|audio|vision)\w*\|>"
)
"""Media that a text holds by itself, as the formats of single models write them."""


@dataclass(frozen=True)
class Turn:
    """A turn as it was written, before its images have a place."""

    role: Role
    pieces: tuple[str | None, ...]
    """Its text, cut where an image stands (None)."""
    images: tuple[str, ...] = ()
    """Paths that the turn itself names."""
    order: tuple[int, ...] = ()
    """Which of the row's images stand in it, where its parts say so by number."""
    learned: bool = True
    """Whether the data set means it to be learned."""

    @property
    def places(self) -> int:
        """How many images stand in it."""
        return self.pieces.count(None)


@dataclass
class RecordFile(Generic[R]):
    """What a file of others' rows holds, and what is to be said of it."""

    records: list[R] = field(default_factory=list)
    """What can be learned from, in the file's order."""
    dropped: Dropped = field(default_factory=Dropped)
    """The other rows by cause, and with an example of each."""
    notes: tuple[str, ...] = ()
    """Sentences for the reader of the results."""

    @property
    def rows(self) -> int:
        """How many rows the file has."""
        return len(self.records) + self.dropped.total()

    def fault(self, number: int, error: ItemError) -> None:
        """Count a row that cannot be used."""
        self.dropped.fault(ItemError(error.cause, f"row {number}: {error}"))

    def take(self, found: Sequence[tuple[str | None, R]]) -> None:
        """Take what was read, each record once, by the id its data set gives it where that is no other row's."""
        times = Counter(given for given, _ in found)
        kept: dict[str, R] = {}
        for given, one in found:
            key = given if given is not None and times[given] == 1 else one.id
            kept[key] = one.model_copy(update={"id": key})
        self.records = list(kept.values())
        for _ in range(len(found) - len(kept)):
            self.dropped.drop("repeated")

    def causes(self) -> str:
        """Why rows were dropped, how often, and an example of each cause."""
        examples = {cause: f" ({example})" for cause, example in self.dropped.examples.items()}
        return ", ".join(f"{count} × {cause}{examples.get(cause, '')}" for cause, count in sorted(self.dropped.items()))


def conversation(images: tuple[str, ...], messages: tuple[Message, ...]) -> Conversation:
    """A conversation with the id that its content gives it."""
    turns: list[JsonValue] = []
    for message in messages:
        where: list[JsonValue] = [list[JsonValue](message.image_offsets)] if message.image_offsets else []
        turns.append([message.role, message.content, *where])
    return Conversation(id=content_id("conversation", list(images), turns), images=images, messages=messages)


def check_turns(messages: Sequence[Message]) -> None:
    """User and assistant by turns, after a system message perhaps; no text empty; the last turn is the assistant's."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise ItemError("no turns", "nobody speaks")
    if not all(message.content.strip() for message in messages):
        raise ItemError("empty text", "a turn is empty")
    asked = turns[0].role == "user" and all(turn.role in ("user", "virtual_user") for turn in turns[::2])
    if not asked or len(turns) % 2 or any(turn.role != "assistant" for turn in turns[1::2]):
        raise ItemError("odd order", f"the turns go {', '.join(turn.role for turn in turns)}")


def refuse_media(row: Mapping[str, object]) -> None:
    """Raise `ItemError` where a row holds what is not read and changes what it means, or is an example of what is wrong."""
    for column in _MEDIA:
        if not blank(row.get(column)) and row[column] != "[]":
            raise ItemError(column, f"the column {column} is filled, and is not read")
    for column in _VERDICTS:
        if row.get(column) is False:
            raise ItemError("marked as bad", f"{column} is false")


def id_of(row: Mapping[str, object]) -> str | None:
    """The id that its data set gives a row."""
    given = row.get("id")
    if blank(given):
        return None
    if not isinstance(given, str | int) or isinstance(given, bool):
        raise ItemError("malformed", f"id is a {type(given).__name__}")
    return text_of(str(given), "id")


def images_of(row: Mapping[str, object], turns: Sequence[Turn], *, root: Path | None) -> tuple[str, ...]:
    """The images that a row names, or its turns, relative to the root, a resolved path; absolute ones inside it become so."""
    named = {column: _listed(row[column]) for column in ("images", "image") if not blank(row.get(column))}
    if len({tuple(Path(path).name for path in paths) for paths in named.values() if paths}) > 1:
        raise ItemError("malformed", "image and images name different files")
    inside = None
    nameless = [column for column in IMAGE_COLUMNS if row.get(column) == ""]
    for column in IMAGE_COLUMNS:
        if not blank(row.get(column)):
            try:
                return _ordered(paths_of(parsed(row[column]), column=column, root=root), turns)
            except ItemError as error:
                if error.cause != "image inside the row":
                    raise
                inside = error  # The Hub's images are often beside their path.
    if inside is not None:
        raise inside
    if nameless:  # Of a table, the cell of an image that is missing; a row of text alone has none, or null.
        raise ItemError("no image", f"{nameless[0]} is empty")
    return tuple(relative_path(path, root) for turn in turns for path in turn.images)


def _listed(raw: object) -> list[str]:
    """The paths that a column names in so many words."""
    value = parsed(raw)
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]


def _ordered(paths: tuple[str, ...], turns: Sequence[Turn]) -> tuple[str, ...]:
    """The images in the order in which the turns show them by number."""
    order = [index for turn in turns for index in turn.order]
    if not order or len(paths) == 1:
        return paths
    if len(order) != sum(turn.places for turn in turns) or {*order} != {*range(len(paths))}:
        raise ItemError("malformed", f"the turns show the images number {', '.join(map(str, order))}; the row has {len(paths)}")
    return tuple(paths[index] for index in order)


def turns_of(raw: object, *, column: str, speaker: Role) -> tuple[Turn, ...]:
    """Turns from a list of turns, a list of one such list, or one turn or text of `speaker`."""
    if isinstance(raw, str):
        return (Turn(speaker, pieces_of(text_of(raw, column))),)
    if isinstance(raw, dict):  # Whoever is said to speak: LLaVA-RLHF's answers are from `llava`.
        return _turns(raw, column, speaker=speaker)
    if not isinstance(raw, list):
        raise ItemError("malformed", f"{column} is a {type(raw).__name__}, neither text nor turns")
    if len(raw) > 1 and any(isinstance(turn, list) for turn in raw):
        raise ItemError("malformed", f"{column} holds several conversations in one row")
    listed = raw[0] if len(raw) == 1 and isinstance(raw[0], list) else raw
    return tuple(turn for one in listed for turn in _turns(one, column, speaker=None))


def history_of(row: Mapping[str, object]) -> tuple[Turn, ...]:
    """What stands before a row's question: the system prompt and the earlier pairs of question and answer."""
    system = next((row[column] for column in SYSTEM_COLUMNS if not blank(row.get(column))), None)
    turns = list(turns_of(system, column="system", speaker="system")) if system is not None else []
    history = parsed(row.get("history"))
    if not blank(history) and not isinstance(history, list):
        raise ItemError("malformed", f"history is a {type(history).__name__}, no list of pairs")
    for pair in history if isinstance(history, list) else ():
        if not isinstance(pair, list) or len(pair) != 2:
            raise ItemError("malformed", "history holds something other than pairs of question and answer")
        asked, said = pair
        turns += turns_of(asked, column="history", speaker="user")
        turns += turns_of(said, column="history", speaker="assistant")
    return tuple(turns)


def messages_of(turns: Sequence[Turn], *, images: tuple[str, ...], told: Counter[str]) -> tuple[Message, ...]:
    """The turns as messages that say where the images stand, unless all stand before the first question.

    Fewer places than images, or several places for one image, are counted in `told`: then all images come first, or the
    one image at its first place.
    """
    if any(turn.places for turn in turns if turn.role != "user"):
        raise ItemError("image outside a question", "an image stands in a turn that is no user's")
    places = sum(turn.places for turn in turns)
    if not images:
        texts = " ".join(piece for turn in turns for piece in turn.pieces if piece)
        if places or _INLINE.search(texts):
            raise ItemError("no image", f"a text speaks of an image, and none of {', '.join(IMAGE_COLUMNS)} names it")
        told[TOLD_LONE] += 1
    elif places > len(images) > 1:
        raise ItemError("more places than images", f"{places} places for {len(images)} images")
    elif places not in (0, len(images)):
        told[TOLD_PLACES] += 1
    if images and any(_INLINE.search(piece) for turn in turns for piece in turn.pieces if piece):
        told[TOLD_MARKS] += 1
    kept = min(places, len(images)) if places == len(images) or len(images) == 1 else 0
    messages: list[Message] = []
    for turn in turns:
        messages.append(_placed(turn, most=kept - sum(len(one.image_offsets) for one in messages)))
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is not None and messages[first].image_offsets == (0,) * kept:
        messages[first] = messages[first].model_copy(update={"image_offsets": ()})
    return tuple(messages)


def _placed(turn: Turn, *, most: int) -> Message:
    """A turn as a message in which the first `most` of its images have their places."""
    text, offsets = "", []
    for piece in turn.pieces:
        if piece is None:
            offsets.append(len(text))
        else:
            text += piece
    content = text.strip()
    before = len(text) - len(text.lstrip())
    inside = tuple(min(max(offset - before, 0), len(content)) for offset in offsets[:most])
    return Message(role=turn.role, content=content, image_offsets=inside)


def _turns(raw: object, column: str, *, speaker: Role | None) -> tuple[Turn, ...]:
    """One turn, by `speaker` or by whom it names, or the two of ms-swift's ShareGPT: {"human": …, "assistant": …}."""
    if not isinstance(raw, dict):
        raise ItemError("malformed", f"{column} holds a {type(raw).__name__} among its turns")
    named, said = (next((key for key in known if key in raw), None) for known in (_SPEAKER, _SAID))
    if named is None and raw and all(str(key).strip().lower() in SPEAKERS for key in raw):
        return tuple(Turn(_role(key), pieces_of(text_of(value, column))) for key, value in raw.items())
    if named is None or said is None:
        raise ItemError(
            "malformed",
            f"{column} holds a turn with the keys {', '.join(map(str, raw))}; expected from and value, or role and content",
        )
    if not isinstance(raw[named], str):
        raise ItemError("malformed", f"{named} is a {type(raw[named]).__name__}")
    pieces, images, order = _content(raw[said], said)
    learned = all(raw.get(flag) not in (False, 0) for flag in _LEARNED)
    return (Turn(speaker or _role(raw[named]), pieces, images, order, learned),)


def _content(raw: object, column: str) -> tuple[tuple[str | None, ...], tuple[str, ...], tuple[int, ...]]:
    """The pieces of a turn's content (a text, or parts of text and images), its images, and their numbers in the row."""
    if not isinstance(raw, list):
        return pieces_of(text_of(raw, column)), (), ()
    parts: list[str | None] = []
    images: list[str] = []
    order: list[int] = []
    shows = any(isinstance(part, dict) and str(part.get("type", "")).startswith("image") for part in raw)
    for part in raw:
        if not isinstance(part, dict) or part.get("type") not in ("text", "image", "image_url"):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ItemError("malformed", f"{column} holds a part of the type {kind!r}; expected text or image")
        if part["type"] == "text":
            text = text_of(part.get("text") or "", "text")
            # Two texts stand on lines of their own. Where images are parts of their own, the word in a text is a word.
            parts += ["\n"] if parts and parts[-1] is not None else []
            parts += (text,) if shows else pieces_of(text)
            continue
        parts.append(None)
        named = next((part[key] for key in ("image", "image_url", "url", "path") if not blank(part.get(key))), None)
        named = named.get("url") if isinstance(named, dict) and "url" in named else named
        images += paths_of(named, column=column, root=None) if named is not None else ()
        order += [part["index"]] if isinstance(part.get("index"), int) else []
    return tuple(parts), tuple(images), tuple(order)


def pieces_of(text: str) -> tuple[str | None, ...]:
    """A text cut at its placeholders."""
    first, *others = text.split(PLACEHOLDER)
    pieces: list[str | None] = [first]
    for other in others:
        pieces += [None, other]
    return tuple(pieces)


def _role(speaker: object) -> Role:
    role = SPEAKERS.get(str(speaker).strip().lower())
    if role is None:
        raise ItemError("unknown speaker", f"a turn is from {speaker!r}; known are {', '.join(SPEAKERS)}")
    return role


def parsed(raw: object) -> object:
    """What a column of a table holds that was written into it as JSON, or as Python's own spelling of it, by pandas."""
    if isinstance(raw, str) and raw.lstrip()[:1] in ("[", "{"):
        try:
            made: object = json.loads(raw)
        except (ValueError, RecursionError):
            return _literal(raw.strip())
        return made
    return raw


def _literal(text: str) -> object:
    """The lists and objects of a text in Python's spelling; the text itself where it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of backslashes in its texts.
        try:
            made: object = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return text
    return made if isinstance(made, list | dict) else text
