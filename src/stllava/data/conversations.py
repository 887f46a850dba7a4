"""Reads labelled conversations: JSONL of `Conversation` records, or rows as LLaVA and others publish them.

    from stllava.data.conversations import read_conversations
    conversations, dropped = read_conversations(Path("llava_med_instruct_60k.json"))

Rows hold turns (conversations, messages) or one question and its answer (`PAIRS`), in JSON, JSON lines or a table. A row that
cannot be learned from is dropped and counted by cause (`data.turns`); a file that is not what it claims to be is an error.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from stllava.data.cells import IMAGE_COLUMNS, blank
from stllava.data.tables import read_table, require_file
from stllava.data.turns import (
    PLACEHOLDER,
    SYSTEM_COLUMNS,
    TOLD_LONE,
    TOLD_MARKS,
    TOLD_PLACES,
    RecordFile,
    Turn,
    check_turns,
    conversation,
    history_of,
    id_of,
    images_of,
    messages_of,
    parsed,
    pieces_of,
    refuse_media,
    turns_of,
)
from stllava.dropped import Dropped
from stllava.errors import ItemError, StllavaError
from stllava.records import Conversation, Message
from stllava.store import read_jsonl

__all__ = ["conversation", "conversation_of", "read_conversation_file", "read_conversations"]

TURNS = ("conversations", "conversatons", "conversation", "messages")
"""Columns of turns; the released LLaVA-Med files say `conversatons`."""
PAIRS = (("query", "response"), ("instruction", "output"), ("prompt", "completion"), ("question", "answer"))
"""Columns of one question and its answer, as ms-swift, Alpaca, TRL and plain tables name them."""
VERL = "reward_model"
"""The column in which verl's rows keep the answer to their prompt, as a ground truth."""
_READ = frozenset(
    {
        *TURNS,
        *(name for pair in PAIRS for name in pair),
        *IMAGE_COLUMNS,
        *SYSTEM_COLUMNS,
        "history",
        "input",
        "id",
        *(VERL, "data_source", "ability", "extra_info"),
    }
)
_NAMED = 8


def read_conversations(path: Path, *, root: Path | None = None) -> tuple[list[Conversation], Dropped]:
    """The usable conversations of a file in its order, and the dropped rows by cause.

    Absolute image paths inside `root` become relative to it.
    """
    read = read_conversation_file(path, root=root)
    return read.records, read.dropped


def read_conversation_file(path: Path, *, root: Path | None = None) -> RecordFile[Conversation]:
    """The conversations of a file, with an example of every cause why a row was dropped, and notes."""
    return _read_own(path) if _is_own(path) else _read_rows(path, root=root.resolve() if root is not None else None)


def conversation_of(row: Mapping[str, object], *, root: Path | None, told: Counter[str]) -> Conversation:
    """The conversation of a row, its images relative to `root`, a resolved path; `told` as in `messages_of`."""
    refuse_media(row)
    if isinstance(reward := row.get(VERL), dict) and "completion" not in row:
        row = {**row, "completion": reward.get("ground_truth")}
    column = next((name for name in TURNS if not blank(row.get(name))), None)
    pair = next((pair for pair in PAIRS if not any(blank(row.get(name)) for name in pair)), None)
    if column is None and pair is None:  # Null where sets were put together that have other columns; else nothing is said.
        column = next((name for name in TURNS if name in row), None)
        pair = next((pair for pair in PAIRS if row.keys() >= set(pair)), None)
    if column is not None:
        turns = turns_of(raw := parsed(row[column]), column=column, speaker="user")
        if isinstance(raw, str) and raw.lstrip()[:1] in ("[", "{"):
            raise ItemError("malformed", f"{column} is a text that begins like turns and is no JSON")
    elif pair is not None:
        turns = (*asked_in(row, pair[0]), *turns_of(row[pair[1]], column=pair[1], speaker="assistant"))
    else:
        raise ItemError("no turns", f"a row has {_listed(row)} and none of the columns that are known")
    before = history_of(row)
    turns = turns if turns and turns[0].role == "system" else (*before, *turns)
    if not all(turn.learned for turn in turns if turn.role == "assistant"):
        raise ItemError("a turn not to be learned", "a turn of the assistant has no loss or weight")
    made = conversation(images := images_of(row, turns, root=root), messages_of(turns, images=images, told=told))
    check_turns(made.messages)
    return made


def asked_in(row: Mapping[str, object], column: str) -> tuple[Turn, ...]:
    """The turns of a column that asks; Alpaca puts what an instruction is about into a column of its own, `input`."""
    asked, about = row[column], row.get("input")
    if column == "instruction" and isinstance(asked, str) and isinstance(about, str) and about.strip():
        asked = f"{asked}\n{about}"
    return turns_of(asked, column=column, speaker="user")


def singles(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Every question of a conversation with several by itself, where that is not among the conversations already.

    A conversation without an image is left whole, and so is one that shows images in a later question.
    """
    known = {conversation(one.images, one.messages).id for one in conversations}
    made: dict[str, Conversation] = {}
    for talk in conversations:
        system = tuple(message for message in talk.messages[:1] if message.role == "system")
        turns = talk.messages[len(system) :]
        if not talk.images or len(turns) < 4 or any(message.image_offsets for message in turns[2:]):
            continue
        for asked, said in zip(turns[::2], turns[1::2], strict=True):
            question = Message(role="user", content=asked.content, image_offsets=asked.image_offsets)
            single = conversation(talk.images, (*system, question, said))
            if single.id not in known:
                made.setdefault(single.id, single)
    return list(made.values())


def _is_own(path: Path) -> bool:
    """Whether a file's first line is a `Conversation` record, or a torn one; only JSON lines are."""
    require_file(path, kinds="conversations")
    if path.suffix != ".jsonl":
        return False
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return first.lstrip().startswith(b"{")
    return isinstance(row, dict) and row.keys() == Conversation.model_fields.keys()


def _read_own(path: Path) -> RecordFile[Conversation]:
    made: RecordFile[Conversation] = RecordFile()
    for number, row in enumerate(read_jsonl(path, Conversation), 1):
        try:
            kept = _with_places(row)
            if not all(kept.images):
                raise ItemError("no image", f"{kept.id} has an image without a name")
            check_turns(kept.messages)
        except ItemError as error:
            made.fault(number, error)
        else:
            made.records.append(kept)
    made.notes = tuple(told_notes(path, {TOLD_LONE: sum(not one.images for one in made.records)}, rows=made.rows))
    return made


def _with_places(row: Conversation) -> Conversation:
    """A record as it is, unless it is a row of ms-swift with an id, which has the same keys and placeholders in its text."""
    asked = " ".join(message.content for message in row.messages if message.role == "user")
    placed = any(message.image_offsets for message in row.messages)
    if placed or not row.images or asked.count(PLACEHOLDER) != len(row.images):
        return row
    if conversation(row.images, row.messages).id == row.id:
        return row
    turns = [Turn(one.role, pieces_of(one.content) if one.role == "user" else (one.content,)) for one in row.messages]
    return row.model_copy(update={"messages": messages_of(turns, images=row.images, told=Counter())})


def _read_rows(path: Path, *, root: Path | None) -> RecordFile[Conversation]:
    table = read_table(path, names=_READ, kinds="conversations", objects=False)
    made: RecordFile[Conversation] = RecordFile()
    if not any({*TURNS, VERL} & row.keys() or any(row.keys() >= set(pair) for pair in PAIRS) for _, row in table.rows):
        raise StllavaError(
            f"{path} has the columns {_listed(table.columns())}",
            expected=f"turns in one of the columns {', '.join(TURNS)}, or the columns {known_pairs()}",
            remedy="Rename the columns, or bring pairs of answers in with `stllava import preferences`.",
        )
    told: Counter[str] = Counter()
    found: list[tuple[str | None, Conversation]] = []
    for number, row in table.rows:
        counts: Counter[str] = Counter()
        try:
            found.append((id_of(row), conversation_of(row, root=root, told=counts)))
        except ItemError as error:
            made.fault(number, error)
        else:
            told += counts
    for number in table.others:
        made.fault(number, ItemError("malformed", "it is no object with named columns"))
    made.take(found)
    made.notes = (*table.notes, *told_notes(path, told, rows=made.rows), *unread_note(path, table.columns(), _READ))
    return made


def known_pairs() -> str:
    """The columns of `PAIRS`, as errors and help name them."""
    return ", or ".join(" and ".join(pair) for pair in PAIRS)


def told_notes(path: Path, told: Mapping[str, int], *, rows: int) -> list[str]:
    """Sentences on what `messages_of` counted among so many rows."""
    sentences = {
        TOLD_LONE: "have no image and are learned as text alone",
        TOLD_MARKS: "spell an image in another way than <image>, such as <|image_pad|> or <image_1>, which is learned as text",
        TOLD_PLACES: "place another number of images than they have: all come first, one image at its first place",
    }
    return [f"{told[key]} of {rows} rows of {path.name} {sentence}." for key, sentence in sentences.items() if told.get(key)]


def unread_note(path: Path, columns: Sequence[str], read: frozenset[str]) -> list[str]:
    """A sentence that names the columns that were passed over; none where all were read."""
    unread = [name for name in columns if name not in read]
    return [f"Columns of {path.name} that were not read: {_listed(unread)}."] if unread else []


def _listed(columns: Mapping[str, object] | Sequence[str]) -> str:
    names = [str(name) for name in columns]
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "") if names else "no columns"
