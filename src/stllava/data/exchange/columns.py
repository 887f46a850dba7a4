"""Preference data sets as they are published: which columns hold the prompt and the two answers.

An answer is a text, a turn, or turns; turns that begin before the answer hold the prompt themselves. A prompt that ends
with an answer is cut before it, since the two answers stand in its place (so does LLaVA-RLHF's own reader).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from stllava.data.conversations import check_turns
from stllava.data.exchange.turns import images_of, messages_of
from stllava.errors import ItemError, StllavaError
from stllava.records import Lineage, Preference, content_id


class Layout(NamedTuple):
    """Where a data set keeps a pair."""

    name: str
    prompt: str | None
    """Column of the turns before the answer; None where the answers hold them."""
    chosen: str
    rejected: str
    winner: str | None = None
    """Column that says 1 where `chosen` is the better answer and 2 where `rejected` is."""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that tell this layout from others."""
        return tuple(filter(None, (self.prompt, self.chosen, self.rejected, self.winner)))


LAYOUTS = (
    Layout("STLLaVA-Med, as its DPO training reads it", None, "chosen_conversations", "reject_conversations"),
    Layout("STLLaVA-Med, as its judge writes it", "q", "p", "r"),
    Layout("torchtune, xtuner", None, "chosen_conversations", "rejected_conversations"),
    Layout("POVID, CSR", None, "conversations", "rejected_conversations"),
    Layout("LLaVA-RLHF", "conversations", "output_1", "output_2", winner="preference"),
    Layout("LLaVA with two answers", "conversations", "chosen", "rejected"),
    Layout("TRL", "prompt", "chosen", "rejected"),
    Layout("RLAIF-V", "question", "chosen", "rejected"),
    Layout("TRL, the prompt inside the answers", None, "chosen", "rejected"),
)
"""The layouts that are known, the first that fits first. What STLLaVA-Med reads and writes is in its published code
(train_dpo.py, llava/eval/eval_gpt4v_review.py); its file on the hub, ZachSun/STLLaVA-Med-DPO, could not be tried here."""


def layout_of(row: Mapping[str, object], *, source: Path) -> Layout:
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


def preference_of(row: Mapping[str, object], layout: Layout, *, root: Path, origin: str) -> Preference:
    """The pair of a row; `origin` says where its verdict stands. Without a column margin, the margin is 1."""
    lacking = [column for column in layout.columns if column not in row]
    if lacking:
        raise ItemError("malformed", f"no {', '.join(lacking)}")
    prompt = messages_of(row[layout.prompt], speaker="user") if layout.prompt else ()
    if prompt and prompt[-1].role == "assistant":
        prompt = prompt[:-1]
    better, worse = layout.chosen, layout.rejected
    if layout.winner:
        better, worse = (better, worse) if _first_wins(row[layout.winner]) else (worse, better)
    wholes = []
    for column in (better, worse):
        answer = messages_of(row[column], speaker="assistant")
        whole = (*prompt, *answer) if answer and answer[0].role == "assistant" else answer
        check_turns(whole)
        wholes.append(whole)
    (*before, chosen), (*other, rejected) = wholes
    if before != other:
        raise ItemError("different prompts", "the two answers do not answer the same")
    if chosen == rejected:
        raise ItemError("same text", "both answers are the same")
    images = images_of(row, root=root)
    question = content_id("question", list(images), [message.model_dump() for message in before])
    answers = content_id("answers", question, chosen.content, rejected.content)
    return Preference(
        id=content_id("preference", answers),
        images=images,
        prompt=tuple(before),
        chosen=chosen.content,
        rejected=rejected.content,
        margin=_margin(row.get("margin", 1.0)),
        lineage=Lineage(question_id=question, answers_id=answers, judgment_id=origin),
    )


def _first_wins(said: object) -> bool:
    if said not in (1, 2, "1", "2"):
        raise ItemError("tie", f"the better answer is {said!r}, neither 1 nor 2")
    return said in (1, "1")


def _margin(said: object) -> float:
    if not isinstance(said, int | float) or not math.isfinite(said) or said <= 0:
        raise ItemError("malformed", f"the margin is {said!r}")
    return float(said)
