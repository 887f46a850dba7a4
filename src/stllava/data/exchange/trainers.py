"""Writes training data in the columns of ms-swift, LLaMA-Factory and verl, as JSON lines; `incoming` reads them back.

    write_conversations(read_conversations(Path("conversations.jsonl"))[0], to=Path("sft.jsonl"), form="ms-swift")
    write_preferences(Path("run/round-1/pair"), to=Path("pairs.jsonl"), form="llama-factory", images=Path("/data/images"))

ms-swift takes the file by `--dataset sft.jsonl`. LLaMA-Factory wants an entry in its dataset_info.json, which `factory_entry`
gives. verl reads parquet: `datasets.load_dataset("json", data_files="rl.jsonl")["train"].to_parquet("rl.parquet")`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from stllava.data.exchange.outgoing import placed, turn_text, write_file
from stllava.records import Conversation, Message, Preference
from stllava.store import read_records

Trainer = Literal["ms-swift", "llama-factory", "verl"]
DATA_SOURCE = "stllava"
"""What verl chooses its reward function by."""


def write_conversations(
    conversations: Iterable[Conversation], *, to: Path, form: Trainer, images: Path | None = None, replace: bool = False
) -> int:
    """Write conversations for a trainer; returns the number of rows.

    ms-swift and LLaMA-Factory: a row a conversation, with the columns messages and images. verl: a row an answer, whose
    prompt is what stands before it and whose ground truth it is, with the columns data_source, prompt, images, ability,
    reward_model and extra_info. A virtual user, whom none of them knows, becomes the user.

    Args:
        conversations: What is written.
        to: The JSONL file.
        form: The trainer.
        images: Root to put before each image's path.
        replace: Write over a file that is there.

    Raises:
        StllavaError: Where the file is there and `replace` is False.
    """
    root = None if images is None else images.resolve()
    rows = [row for one in conversations for row in (_verl_rows(one, root) if form == "verl" else [_talk(one, root)])]
    return _write(rows, to=to, replace=replace)


def write_preferences(
    preferences: Path,
    *,
    to: Path,
    form: Literal["ms-swift", "llama-factory"],
    images: Path | None = None,
    replace: bool = False,
) -> int:
    """Write the pairs of a folder for a trainer's DPO; returns the number of rows.

    ms-swift: messages, whose last is the chosen answer, and rejected_response. LLaMA-Factory: messages, chosen and rejected,
    each a turn. Beside them stand id, images and margin.

    Args:
        preferences: Folder of the pairs.
        to: The JSONL file.
        form: The trainer.
        images: Root to put before each image's path.
        replace: Write over a file that is there.

    Raises:
        StllavaError: Where the file is there and `replace` is False, or the folder holds no preferences.
    """
    root = None if images is None else images.resolve()
    rows: list[dict[str, object]] = []
    for one in (pair for pair in read_records(preferences, "preferences", Preference) if pair.speaker == "assistant"):
        row: dict[str, object] = {"id": one.id, "images": _paths(one.images, root), "margin": one.margin}
        asked, chosen = _turns(one.prompt, images=len(one.images)), {"role": "assistant", "content": one.chosen}
        if form == "ms-swift":
            row |= {"messages": [*asked, chosen], "rejected_response": one.rejected}
        else:
            row |= {"messages": asked, "chosen": chosen, "rejected": {"role": "assistant", "content": one.rejected}}
        rows.append(row)
    return _write(rows, to=to, replace=replace)


def factory_entry(to: Path, *, ranking: bool) -> str:
    """The entry of a file in LLaMA-Factory's dataset_info.json."""
    columns = {"messages": "messages", "images": "images"}
    columns |= {"chosen": "chosen", "rejected": "rejected"} if ranking else {}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": to.name, "formatting": "sharegpt", "ranking": ranking, "columns": columns, "tags": tags}
    return json.dumps({to.stem: entry})


def _talk(one: Conversation, root: Path | None) -> dict[str, object]:
    return {"messages": _turns(one.messages, images=len(one.images)), "images": _paths(one.images, root)}


def _verl_rows(one: Conversation, root: Path | None) -> Iterator[dict[str, object]]:
    turns = _turns(one.messages, images=len(one.images))
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            yield {
                "data_source": DATA_SOURCE,
                "prompt": turns[:index],
                "images": [{"image": path} for path in _paths(one.images, root)],
                "ability": "medical visual question answering",
                "reward_model": {"style": "rule", "ground_truth": turn["content"]},
                "extra_info": {"id": one.id, "index": index},
            }


def _turns(messages: Sequence[Message], *, images: int) -> list[dict[str, str]]:
    """The messages as role and content, with the places of the images in the texts."""
    return [
        {"role": "user" if one.role == "virtual_user" else one.role, "content": turn_text(one)}
        for one in placed(messages, images=images)
    ]


def _paths(images: Sequence[str], root: Path | None) -> list[str]:
    return [(root / path).as_posix() if root else path for path in images]


def _write(rows: Sequence[dict[str, object]], *, to: Path, replace: bool) -> int:
    write_file(to, (f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), replace=replace)
    return len(rows)
