"""Reads labelled conversations: JSONL of `Conversation` records, or JSON as LLaVA and LLaVA-Med publish it.

A row that cannot be learned from is dropped and counted by cause; a file that is not what it claims to be is an error.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from stllava.errors import ItemError, StllavaError
from stllava.records import Conversation, Message, Role, content_id
from stllava.store import read_jsonl

PLACEHOLDER = "<image>"
SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "vuser": "virtual_user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Who speaks, as LLaVA (human, gpt), SQ-LLaVA (vuser) and chat interfaces say it."""


class _Turn(BaseModel):
    """One turn as LLaVA writes it."""

    model_config = ConfigDict(extra="ignore")
    speaker: str = Field(alias="from")
    value: str


class _Row(BaseModel):
    """One row as LLaVA writes it; the released LLaVA-Med files say `conversatons`."""

    model_config = ConfigDict(extra="ignore")
    id: str | int | None = None
    image: str | list[str] | None = None
    conversations: list[_Turn] = Field(default_factory=list, validation_alias=AliasChoices("conversations", "conversatons"))


def read_conversations(path: Path) -> tuple[list[Conversation], Counter[str]]:
    """The usable conversations of a file in its order, and the dropped rows by cause.

    Causes: malformed, unknown speaker, no image, no turns, empty text, odd order.
    """
    return _usable(read_jsonl(path, Conversation)) if path.suffix == ".jsonl" else _read_llava(path)


def conversation(images: tuple[str, ...], messages: tuple[Message, ...]) -> Conversation:
    """A conversation with the id that its content gives it."""
    turns: list[JsonValue] = []
    for message in messages:
        where: list[JsonValue] = [list[JsonValue](message.image_offsets)] if message.image_offsets else []
        turns.append([message.role, message.content, *where])
    return Conversation(id=content_id("conversation", list(images), turns), images=images, messages=messages)


def _usable(rows: list[Conversation]) -> tuple[list[Conversation], Counter[str]]:
    kept: list[Conversation] = []
    dropped: Counter[str] = Counter()
    for row in rows:
        try:
            _check(row)
        except ItemError as error:
            dropped[error.cause] += 1
        else:
            kept.append(row)
    return kept, dropped


def _read_llava(path: Path) -> tuple[list[Conversation], Counter[str]]:
    seen: dict[str, int] = {}
    kept: list[Conversation] = []
    dropped: Counter[str] = Counter()
    for number, raw in enumerate(read_rows(path), 1):
        try:
            row = _conversation(raw)
        except ItemError as error:
            dropped[error.cause] += 1
            continue
        if row.id in seen:
            raise StllavaError(
                f"{path}, row {number}: id {row.id!r} is the id of row {seen[row.id]} already",
                expected="each id once",
                remedy="Remove one of the two rows, or give it another id (rows without an id get one from their content).",
            )
        seen[row.id] = number
        kept.append(row)
    return kept, dropped


def read_rows(path: Path) -> list[object]:
    """The rows of a JSON file that holds one list; a broken one is refused by line."""
    if not path.is_file():
        raise StllavaError(f"no file {path}", expected="a JSON list of rows", remedy="Check the path.")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise StllavaError(
            f"{path}, line {error.lineno}: {error.msg}", expected="a JSON list of rows", remedy="Mend that line."
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise StllavaError(
            f"{path}, line {line}: not UTF-8", expected="a JSON list of rows in UTF-8", remedy="Save the file as UTF-8."
        ) from None
    if not isinstance(rows, list):
        raise StllavaError(
            f"{path} holds a {type(rows).__name__}", expected="a JSON list of rows", remedy="JSONL files must end in .jsonl."
        )
    return rows


def _conversation(raw: object) -> Conversation:
    try:
        row = _Row.model_validate(raw)
    except ValidationError as error:
        raise ItemError("malformed", str(error)) from None
    images = (row.image,) if isinstance(row.image, str) else tuple(row.image or ())
    messages: list[Message] = []
    for turn in row.conversations:
        role = SPEAKERS.get(turn.speaker.strip().lower())
        if role is None:
            raise ItemError("unknown speaker", f"a turn is from {turn.speaker!r}")
        messages.append(Message(role=role, content=turn.value.replace(PLACEHOLDER, "").strip()))
    made = conversation(images, tuple(messages))
    _check(made)
    return made if row.id is None else made.model_copy(update={"id": str(row.id)})


def _check(row: Conversation) -> None:
    if not row.images or not all(row.images):
        raise ItemError("no image", f"{row.id} has no image")
    check_turns(row.messages)


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
