"""Writes training data for others: LLaVA JSON, and the columns of TRL's DPO for vision models as JSONL.

    to_trl(Path("run/round-1/pair"), to=Path("pairs.jsonl"), images=Path("/data/images"))
    to_llava(read_conversations(Path("conversations.jsonl"))[0], to=Path("conversations.json"))

TRL reads the file as

    load_dataset("json", data_files="pairs.jsonl", split="train").cast_column("images", List(Image()))

and every file that is written here can be imported again (`incoming`).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from stllava.data.turns import PLACEHOLDER, conversation
from stllava.errors import StllavaError
from stllava.records import Conversation, Message, Preference, Role
from stllava.store import read_records, write_whole

_LLAVA: dict[Role, str] = {"user": "human", "virtual_user": "vuser", "assistant": "gpt", "system": "system"}


def to_trl(preferences: Path, *, to: Path, images: Path | None = None, replace: bool = False) -> int:
    """Write the pairs of the folder `preferences` with TRL's columns images, prompt, chosen, rejected; returns how many.

    The columns id and margin stand beside them. Image paths are put behind `images`, which TRL needs unless it runs in
    the image root. TRL knows no virtual user: its turns become the user's.
    """
    pairs = read_records(preferences, "preferences", Preference)
    root = None if images is None else images.resolve()
    _write_file(to, (f"{json.dumps(_trl_row(one, root), ensure_ascii=False)}\n" for one in pairs), replace=replace)
    return len(pairs)


def to_llava(conversations: Iterable[Conversation], *, to: Path, replace: bool = False) -> int:
    """Write LLaVA JSON: id, image (a list where there are several) and conversations; returns how many.

    Image places stand in the first turn of a human; a virtual user is `vuser`, as in SQ-LLaVA.
    """
    rows = [json.dumps(_llava_row(one), ensure_ascii=False) for one in conversations]
    _write_file(to, ("[\n", ",\n".join(rows), "\n]\n"), replace=replace)
    return len(rows)


def chosen_answers(preferences: Path) -> list[Conversation]:
    """What is chosen in the folder `preferences`, as conversations to learn from, each once."""
    made: dict[str, Conversation] = {}
    for one in read_records(preferences, "preferences", Preference):
        taught = conversation(one.images, (*one.prompt, Message(role="assistant", content=one.chosen)))
        made[taught.id] = taught
    return list(made.values())


def _trl_row(one: Preference, root: Path | None) -> dict[str, object]:
    first = next(index for index, message in enumerate(one.prompt) if message.role == "user")
    turns: list[dict[str, object]] = []
    for index, message in enumerate(one.prompt):
        places: list[dict[str, str]] = [{"type": "image"}] * len(one.images) if index == first else []
        role = "user" if message.role == "virtual_user" else message.role
        turns.append({"role": role, "content": [*places, {"type": "text", "text": message.content}]})
    return {
        "id": one.id,
        "images": [(root / path).as_posix() if root else path for path in one.images],
        "prompt": turns,
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": one.chosen}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": one.rejected}]}],
        "margin": one.margin,
    }


def _llava_row(one: Conversation) -> dict[str, object]:
    turns = [{"from": _LLAVA[message.role], "value": message.content} for message in one.messages]
    first = next(turn for turn in turns if turn["from"] == "human")
    first["value"] = f"{PLACEHOLDER}\n" * len(one.images) + first["value"]
    return {"id": one.id, "image": one.images[0] if len(one.images) == 1 else list(one.images), "conversations": turns}


def _write_file(to: Path, pieces: Iterable[str], *, replace: bool) -> None:
    if to.exists() and not replace:
        raise StllavaError(f"{to} is there already", expected="a new file", remedy="Name another one, or set replace.")

    def encoded() -> Iterator[bytes]:
        for piece in pieces:
            yield piece.encode()

    write_whole(to, encoded())
