"""Writes training data for others: LLaVA JSON, and the columns of TRL's DPO for vision models as JSONL.

    to_trl(Path("run/round-1/pair"), to=Path("pairs.jsonl"), images=Path("/data/images"))
    to_llava(read_conversations(Path("conversations.jsonl"))[0], to=Path("conversations.json"))

TRL reads the file as

    load_dataset("json", data_files="pairs.jsonl", split="train").cast_column("images", List(Image()))

and every file that is written here can be imported again (`incoming`).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from stllava.data.turns import PLACEHOLDER, conversation
from stllava.errors import StllavaError
from stllava.records import Conversation, Message, Preference, Role
from stllava.store import read_records, write_whole

_LLAVA: dict[Role, str] = {"user": "human", "virtual_user": "vuser", "assistant": "gpt", "system": "system"}


def to_trl(preferences: Path, *, to: Path, images: Path | None = None, replace: bool = False) -> int:
    """Write the pairs of the folder `preferences` with TRL's columns images, prompt, chosen, rejected; returns how many.

    The columns id and margin stand beside them. Image paths are put behind `images`, which TRL needs unless it runs in
    the image root. TRL knows no virtual user: its turns become the user's, and pairs of
    questions are left out.

    Args:
        preferences: Folder of the pairs.
        to: The JSONL file.
        images: Root to put before each image's path, for TRL knows no root.
        replace: Write over a file that is there.

    Raises:
        StllavaError: Where the file is there and `replace` is False, or the folder holds no preferences.
    """
    pairs = [pair for pair in read_records(preferences, "preferences", Preference) if pair.speaker == "assistant"]
    root = None if images is None else images.resolve()
    write_file(to, (f"{json.dumps(trl_row(one, root), ensure_ascii=False)}\n" for one in pairs), replace=replace)
    return len(pairs)


def to_llava(conversations: Iterable[Conversation], *, to: Path, replace: bool = False) -> int:
    """Write LLaVA JSON: id, image (a list where there are several) and conversations; returns how many.

    Image places stand where the records have them, else in front of the first human's text; a virtual user is `vuser`, as
    in SQ-LLaVA.

    Args:
        conversations: What is written.
        to: The JSON file.
        replace: Write over a file that is there.

    Raises:
        StllavaError: Where the file is there and `replace` is False.
    """
    rows = [json.dumps(_llava_row(one), ensure_ascii=False) for one in conversations]
    write_file(to, ("[\n", ",\n".join(rows), "\n]\n"), replace=replace)
    return len(rows)


def chosen_answers(preferences: Path) -> list[Conversation]:
    """What is chosen in the folder `preferences`, as conversations to learn from, each once."""
    made: dict[str, Conversation] = {}
    for one in read_records(preferences, "preferences", Preference):
        taught = conversation(one.images, (*one.prompt, Message(role=one.speaker, content=one.chosen)))
        made[taught.id] = taught
    return list(made.values())


def trl_row(one: Preference, root: Path | None) -> dict[str, object]:
    """A pair in TRL's columns, with the paths of its images behind `root`."""
    turns: list[dict[str, object]] = []
    for message in placed(one.prompt, images=len(one.images)):
        parts: list[dict[str, str]] = []
        start = 0
        for offset in (*message.image_offsets, len(message.content)):
            parts += [{"type": "text", "text": message.content[start:offset]}] if offset > start else []
            parts.append({"type": "image"})
            start = offset
        role = "user" if message.role == "virtual_user" else message.role
        turns.append({"role": role, "content": parts[:-1]})
    return {
        "id": one.id,
        "images": [(root / path).as_posix() if root else path for path in one.images],
        "prompt": turns,
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": one.chosen}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": one.rejected}]}],
        "margin": one.margin,
    }


def _llava_row(one: Conversation) -> dict[str, object]:
    turns = [
        {"from": _LLAVA[message.role], "value": turn_text(message)} for message in placed(one.messages, images=len(one.images))
    ]
    image = {"image": one.images[0] if len(one.images) == 1 else list(one.images)} if one.images else {}
    return {"id": one.id, **image, "conversations": turns}


def placed(messages: Sequence[Message], *, images: int) -> list[Message]:
    """The messages, the first user's with the places of all images where none says where they stand."""
    if not images or any(message.image_offsets for message in messages):
        return list(messages)
    first = next(index for index, message in enumerate(messages) if message.role == "user")
    shown = messages[first].model_copy(update={"image_offsets": (0,) * images})
    return [*messages[:first], shown, *messages[first + 1 :]]


def turn_text(message: Message) -> str:
    """A turn's text with its placeholders; those in front of it stand on lines of their own, as LLaVA writes them."""
    text, start = "", 0
    for offset in message.image_offsets:
        text += message.content[start:offset] + (PLACEHOLDER if offset else f"{PLACEHOLDER}\n")
        start = offset
    return text + message.content[start:]


def write_file(to: Path, pieces: Iterable[str], *, replace: bool) -> None:
    """Write a new file of these pieces; over one that is there only with `replace`."""
    if to.exists() and not replace:
        raise StllavaError(f"{to} is there already", expected="a new file", remedy="Name another one, or set replace.")

    def encoded() -> Iterator[bytes]:
        for piece in pieces:
            yield piece.encode()

    write_whole(to, encoded())
