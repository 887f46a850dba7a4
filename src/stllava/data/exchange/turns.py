"""Rows and turns as others write them: LLaVA's {"from", "value"}, and {"role", "content"} as chat interfaces and TRL do.

Reads JSON lists and JSONL; writes nothing. What is wrong with one row is an `ItemError` whose cause is counted: malformed,
unknown speaker, no image, no turns, empty text, odd order.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from stllava.data.conversations import PLACEHOLDER, SPEAKERS, check_turns, conversation, read_rows
from stllava.errors import ItemError, StllavaError
from stllava.records import Conversation, Message, Role

T = TypeVar("T")

IMAGE_COLUMNS = ("images", "image", "img", "image_path")

# JSON can spell half a surrogate pair, which no file in UTF-8 can hold.
_Text = Annotated[str, AfterValidator(lambda text: text.encode().decode())]


class _Part(BaseModel):
    """A piece of a turn; an image is a place only."""

    type: Literal["text", "image"]
    text: _Text | None = None


class _Turn(BaseModel):
    """One turn in either spelling."""

    model_config = ConfigDict(extra="ignore")
    speaker: str = Field(validation_alias=AliasChoices("from", "role"))
    said: _Text | list[_Part] = Field(validation_alias=AliasChoices("value", "content"))


_SAID: TypeAdapter[str | _Turn | list[_Turn] | list[list[_Turn]]] = TypeAdapter(_Text | _Turn | list[_Turn] | list[list[_Turn]])
_PATHS: TypeAdapter[str | list[str]] = TypeAdapter(_Text | list[_Text])
_ID: TypeAdapter[str | int | None] = TypeAdapter(_Text | int | None)


def read_table(path: Path) -> list[Mapping[str, object]]:
    """The objects of a JSON list, or of JSONL; what is not one is refused by number."""
    if not path.is_file():
        raise StllavaError(f"no file {path}", expected="a JSON list of rows, or JSONL", remedy="Check the path.")
    with path.open("rb") as file:
        first = next((line.lstrip() for line in file if line.strip()), b"")
    rows = read_rows(path) if first.startswith(b"[") else _lines(path)
    made: list[Mapping[str, object]] = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise _refused(path, number, f"it is a {type(row).__name__}")
        made.append(row)
    if not made:
        raise StllavaError(f"{path} has no rows", expected="at least one", remedy="Check the file.")
    return made


def id_of(row: Mapping[str, object]) -> str | None:
    """The id that its data set gives a row."""
    given = _valid(_ID, row.get("id"))
    return None if given is None else str(given)


def images_of(row: Mapping[str, object], *, root: Path) -> tuple[str, ...]:
    """The row's images relative to the root, a resolved path; absolute ones become so where they lie inside it."""
    named = next((row[column] for column in IMAGE_COLUMNS if row.get(column)), None)
    if named is None:
        raise ItemError("no image", f"none of {', '.join(IMAGE_COLUMNS)}")
    paths = _valid(_PATHS, named)
    relative = tuple(_inside(path, root) for path in ([paths] if isinstance(paths, str) else paths))
    if not all(relative):
        raise ItemError("no image", "an image has no name")
    return relative


def messages_of(raw: object, *, speaker: Role) -> tuple[Message, ...]:
    """Turns from a list of turns, a list of one such list, or one turn or text of `speaker`; without image places."""
    said = _valid(_SAID, raw)
    if isinstance(said, str):
        return (Message(role=speaker, content=_plain(said)),)
    if isinstance(said, _Turn):
        return (Message(role=speaker, content=_text(said)),)
    if len(said) > 1 and any(isinstance(turn, list) for turn in said):
        raise ItemError("malformed", "several conversations in one row")
    turns = [turn for one in said for turn in (one if isinstance(one, list) else [one])]
    return tuple(Message(role=_role(turn), content=_text(turn)) for turn in turns)


def conversation_of(row: Mapping[str, object], *, root: Path) -> Conversation:
    """The conversation of a row as LLaVA writes it; the released LLaVA-Med files say `conversatons`."""
    column = next((name for name in ("conversations", "conversatons", "messages") if name in row), None)
    if column is None:
        raise ItemError("no turns", "neither conversations nor messages")
    made = conversation(images_of(row, root=root), messages_of(row[column], speaker="user"))
    check_turns(made.messages)
    return made


def _lines(path: Path) -> list[object]:
    rows: list[object] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise _refused(path, number, str(error)) from None
    return rows


def _refused(path: Path, number: int, found: str) -> StllavaError:
    return StllavaError(
        f"{path}, row {number}: {found}",
        expected="a JSON list of objects, or one object a line",
        remedy="Mend that row; a parquet file has to be written as JSONL first.",
    )


def _valid(kind: TypeAdapter[T], raw: object) -> T:
    try:
        return kind.validate_python(raw)
    except ValidationError as error:
        raise ItemError("malformed", str(error)) from None


def _role(turn: _Turn) -> Role:
    role = SPEAKERS.get(turn.speaker.strip().lower())
    if role is None:
        raise ItemError("unknown speaker", f"a turn is from {turn.speaker!r}")
    return role


def _text(turn: _Turn) -> str:
    return _plain(turn.said if isinstance(turn.said, str) else "\n".join(part.text or "" for part in turn.said))


def _plain(text: str) -> str:
    return text.replace(PLACEHOLDER, "").strip()


def _inside(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
