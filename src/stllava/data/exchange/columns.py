"""Preference data sets as they are published: which columns hold the prompt and the two answers.

An answer is a text, a turn, or turns; turns that begin before the answer hold the prompt themselves. A prompt that ends
with an answer is cut before it, since the two answers stand in its place (so does LLaVA-RLHF's own reader). A data set that
keeps its pair inside a column (RLHF-V) or rates several answers (VLFeedback) is unpacked first.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from stllava.data.cells import IMAGE_COLUMNS, blank, paths_of
from stllava.data.conversations import asked_in
from stllava.data.turns import (
    SYSTEM_COLUMNS,
    Turn,
    check_turns,
    history_of,
    images_of,
    messages_of,
    parsed,
    refuse_media,
    turns_of,
)
from stllava.errors import ItemError, StllavaError
from stllava.records import Lineage, Message, Preference, content_id

Row = Mapping[str, object]

OF_THE_REJECTED = tuple(f"rejected_{what}" for what in ("images", "image", "videos", "audios", "tools", "objects"))
"""Columns that show the rejected answer something else than the chosen one; a pair of ours has one prompt and its images."""
SCORES = ("score_chosen", "score_rejected")
"""Columns in which some data sets of TRL's form, UltraFeedback among them, say how good either answer is."""
_RATED = 4.0
"""From the worst rating, 1, to the best, 5."""


class ColumnLayout(NamedTuple):
    """Where a data set keeps a pair."""

    name: str
    prompt: str | None
    """Column of the turns before the answer; None where the answers hold them."""
    chosen: str
    rejected: str
    winner: str | None = None
    """Column that says 1 where `chosen` is the better answer and 2 where `rejected` is."""
    packed: tuple[str, ...] = ()
    """Columns that tell the layout where `unpack` makes the others of them."""
    unpack: Callable[[Row], Row] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that tell this layout from others."""
        return self.packed or tuple(dict.fromkeys(filter(None, (self.prompt, self.chosen, self.rejected, self.winner))))

    @property
    def read(self) -> frozenset[str]:
        """All columns that are read of such a row."""
        given = {*self.columns, *IMAGE_COLUMNS, *SYSTEM_COLUMNS, *OF_THE_REJECTED, "history", "margin", "id", *SCORES}
        return frozenset(given | ({"input"} if self.prompt == "instruction" else set()))


def _rlhf_v(row: Row) -> Row:
    """The pair that RLHF-V writes into `text` as JSON: question, chosen, rejected."""
    pair = parsed(row["text"])
    if not isinstance(pair, dict) or not {"question", "chosen", "rejected"} <= pair.keys():
        raise ItemError("malformed", "text holds no JSON with question, chosen and rejected")
    return {**row, **pair}


def _vlfeedback(row: Row) -> Row:
    """The best and the worst of the rated answers of VLFeedback, told by the mean of their ratings."""
    listed = parsed(row["completions"])
    if isinstance(listed, dict):  # A list of objects becomes an object of lists in the Hub's own reader.
        if not all(isinstance(column, list) for column in listed.values()):
            raise ItemError("malformed", "completions holds neither a list nor lists")
        listed = [dict(zip(listed, values, strict=False)) for values in zip(*listed.values(), strict=False)]
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ItemError("malformed", f"completions is a {type(listed).__name__}, no list of answers")
    rated = [(rating, one.get("response")) for one in listed if (rating := _rating(one.get("annotations"))) is not None]
    if len(rated) < 2:
        raise ItemError("no rating", f"{len(rated)} of {len(listed)} completions have a rating")
    best, worst = max(rated, key=lambda one: one[0]), min(rated, key=lambda one: one[0])
    if best[0] == worst[0]:
        raise ItemError("tie", f"all completions are rated {best[0]:.2g}")
    return {**row, "chosen": best[1], "rejected": worst[1], "margin": (best[0] - worst[0]) / _RATED}


def _rating(annotations: object) -> float | None:
    """The mean rating over all aspects; None where no aspect has one."""
    aspects = annotations.values() if isinstance(annotations, dict) else ()
    said = [str(aspect.get("Rating", "")).strip() for aspect in aspects if isinstance(aspect, dict)]
    ratings = [int(text) for text in said if text in ("1", "2", "3", "4", "5")]
    return sum(ratings) / len(ratings) if ratings else None


LAYOUTS = (
    ColumnLayout("STLLaVA-Med, as its DPO training reads it", None, "chosen_conversations", "reject_conversations"),
    ColumnLayout("STLLaVA-Med, as its judge writes it", "q", "p", "r"),
    ColumnLayout("torchtune, xtuner", None, "chosen_conversations", "rejected_conversations"),
    ColumnLayout("POVID, CSR", None, "conversations", "rejected_conversations"),
    ColumnLayout("LLaVA-RLHF", "conversations", "output_1", "output_2", winner="preference"),
    ColumnLayout("LLaVA with two answers", "conversations", "chosen", "rejected"),
    ColumnLayout("LLaMA-Factory, OpenAI's turns", "messages", "chosen", "rejected"),
    ColumnLayout("LLaMA-Factory, Alpaca", "instruction", "chosen", "rejected"),
    ColumnLayout("ms-swift, rejected_messages", None, "messages", "rejected_messages"),
    ColumnLayout("ms-swift, rejected_response", "messages", "messages", "rejected_response"),
    ColumnLayout("ms-swift, query and response", "query", "response", "rejected_response"),
    ColumnLayout("VLFeedback", "prompt", "chosen", "rejected", packed=("prompt", "completions"), unpack=_vlfeedback),
    ColumnLayout("TRL", "prompt", "chosen", "rejected"),
    ColumnLayout("RLAIF-V", "question", "chosen", "rejected"),
    ColumnLayout("TRL, the prompt inside the answers", None, "chosen", "rejected"),
    ColumnLayout("RLHF-V", "question", "chosen", "rejected", packed=("ds_name", "text"), unpack=_rlhf_v),
)
"""The layouts that are known, the first that fits first. What STLLaVA-Med reads and writes is in its published code
(train_dpo.py, llava/eval/eval_gpt4v_review.py); its file on the hub, ZachSun/STLLaVA-Med-DPO, could not be tried here."""


def layout_of(row: Row, *, source: Path) -> ColumnLayout:
    """The first layout whose columns a row has; refused with the columns found where there is none."""
    for layout in LAYOUTS:
        if set(layout.columns) <= set(row):
            return layout
    known = "; ".join(f"{', '.join(layout.columns)} ({layout.name})" for layout in LAYOUTS)
    raise StllavaError(
        f"{source} has the columns {', '.join(row)}",
        expected=f"the columns of one of: {known}",
        remedy="Rename the columns of the prompt and of both answers to prompt, chosen and rejected.",
    )


def preference_of(row: Row, layout: ColumnLayout, *, root: Path, origin: str, told: Counter[str] | None = None) -> Preference:
    """The pair of a row; `origin` says where its verdict stands. Without a column margin, the margin is 1.

    What is read though it is not quite what it seems is counted in `told`, as by `messages_of`.
    """
    lacking = [column for column in layout.columns if column not in row]
    if lacking:
        raise ItemError("malformed", f"no {', '.join(lacking)} among {', '.join(row)}")
    refuse_media(row)
    row = layout.unpack(row) if layout.unpack is not None else row
    prompt = asked_in({**row, layout.prompt: parsed(row[layout.prompt])}, layout.prompt) if layout.prompt else ()
    prompt = prompt[:-1] if prompt and prompt[-1].role == "assistant" else prompt
    _check_scores(row)
    before = history_of(row)
    better, worse = layout.chosen, layout.rejected
    if layout.winner:
        better, worse = (better, worse) if _first_wins(row[layout.winner]) else (worse, better)
    chains = [_chain(before, prompt, row[column], column) for column in (better, worse)]
    images = images_of(row, chains[0], root=root)
    if not images:
        raise ItemError("no image", f"none of {', '.join(IMAGE_COLUMNS)}")
    _refuse_other_media(row, images, root=root)
    counts = Counter[str]() if told is None else told
    (*asked, chosen), (*other, rejected) = _checked(chains[0], images, counts), _checked(chains[1], images, Counter())
    if asked != other:
        raise ItemError("different prompts", "the two answers do not answer the same")
    if not _follows(chains[0], prompt):
        raise ItemError("other prompt", f"{better} begins with another question than {layout.prompt}")
    if chosen == rejected:
        raise ItemError("same text", "both answers are the same")
    question = content_id("question", list(images), [message.model_dump() for message in asked])
    answers = content_id("answers", question, chosen.content, rejected.content)
    return Preference(
        id=content_id("preference", answers),
        images=images,
        prompt=tuple(asked),
        chosen=chosen.content,
        rejected=rejected.content,
        margin=_margin(row.get("margin")),
        lineage=Lineage(question_id=question, answers_id=answers, judgment_id=origin),
    )


def _chain(before: Sequence[Turn], prompt: Sequence[Turn], raw: object, column: str) -> tuple[Turn, ...]:
    """Every turn up to an answer and the answer, which may hold the turns before it."""
    answer = turns_of(raw, column=column, speaker="assistant")
    whole = (*prompt, *answer) if answer and answer[0].role == "assistant" else answer
    return whole if whole and whole[0].role == "system" else (*before, *whole)


def _follows(chain: Sequence[Turn], prompt: Sequence[Turn]) -> bool:
    """Whether the turns before an answer have those of the prompt among them, one behind the other; blanks aside."""
    asked, before = ([_words(turn) for turn in turns if turn.role != "system"] for turns in (prompt, chain[:-1]))
    return any(before[i : i + len(asked)] == asked for i in range(len(before) - len(asked) + 1))


def _words(turn: Turn) -> list[str]:
    return "".join(piece for piece in turn.pieces if piece is not None).split()


def _check_scores(row: Row) -> None:
    """Raise `ItemError` where a row's own scores prefer the rejected answer, or none."""
    if any(blank(row.get(column)) for column in SCORES):
        return
    chosen, rejected = (_number(row[column], column) for column in SCORES)
    if chosen < rejected:
        raise ItemError("chosen scored lower", f"the chosen answer has the score {chosen:g}, the rejected one {rejected:g}")
    if chosen == rejected:
        raise ItemError("tie", f"both answers have the score {chosen:g}")


def _checked(chain: Sequence[Turn], images: tuple[str, ...], told: Counter[str]) -> tuple[Message, ...]:
    messages = messages_of(chain, images=images, told=told)
    check_turns(messages)
    return messages


def _refuse_other_media(row: Row, images: tuple[str, ...], *, root: Path) -> None:
    """Raise `ItemError` where the rejected answer was given to something else than the chosen one."""
    for column in OF_THE_REJECTED:
        if blank(row.get(column)):
            continue
        if not column.startswith("rejected_image") or paths_of(row[column], column=column, root=root) != images:
            raise ItemError(f"other {column}", f"{column} differs from what the chosen answer is shown")


def _first_wins(said: object) -> bool:
    if said not in (1, 2, "1", "2"):
        raise ItemError("tie", f"the better answer is {said!r}, neither 1 nor 2")
    return said in (1, "1")


def _margin(said: object) -> float:
    """The margin of a column; 1 where there is none. A table holds it as a text."""
    if said is None or said == "":
        return 1.0
    margin = _number(said, "margin")
    if margin <= 0:
        raise ItemError("malformed", f"the margin is {said!r}")
    return margin


def _number(said: object, column: str) -> float:
    """The finite number of a column; a table holds it as a text."""
    try:
        number = float(said) if isinstance(said, int | float | str) and not isinstance(said, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ItemError("malformed", f"{column} is {said!r}")
    return number
