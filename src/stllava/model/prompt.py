"""From messages to text and tokens: the one place that says what is learned from.

A conversation becomes segments in the chat template's own words. What is learned are the assistant's turns and the
virtual user's, each with its end-of-turn token; nothing else is. Training and generation build their tokens from the
same segments, so a prompt is cut the same way whether it is learned behind or continued.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from stllava.errors import StllavaError
from stllava.records import Message, Role

LEARNED: frozenset[Role] = frozenset({"assistant", "virtual_user"})


class ChatProcessor(Hashable, Protocol):
    """What prompts need of a transformers processor."""

    chat_template: str
    image_token: str

    def apply_chat_template(self, conversation: list[dict[str, object]], *, tokenize: bool) -> str:
        """Render a conversation."""


@dataclass(frozen=True)
class Segment:
    """A stretch of prompt text."""

    text: str
    learn: bool


def segments(processor: ChatProcessor, messages: Sequence[Message], *, images: int) -> list[Segment]:
    """The conversation's text, cut where learning starts and stops; the first segment ends behind the images."""
    frame = _frame(processor, tuple(message.role for message in messages), images)
    pieces: list[Segment] = []
    pending = ""
    for message, (before, after) in zip(messages, frame, strict=True):
        pending += before
        if message.role in LEARNED:
            ending = after.rstrip()
            pieces += [Segment(pending, False), Segment(message.content + ending, True)]
            pending = after[len(ending) :]
        else:
            pending += message.content + after
    if pending.strip():
        pieces.append(Segment(pending, False))
    return _split_behind_images(processor, pieces, images)


def prompt(processor: ChatProcessor, messages: Sequence[Message], *, images: int, speaker: Role) -> tuple[list[Segment], str]:
    """The conversation's text up to where `speaker` begins to speak, and what stands behind what is said."""
    opened = [*messages, Message(role=speaker, content=_SAID)]
    pieces = segments(processor, opened, images=images)
    while not pieces[-1].learn:
        pieces.pop()
    return pieces[:-1], pieces[-1].text.removeprefix(_SAID)


def self_question(messages: Sequence[Message], turns: Sequence[bool]) -> list[Message]:
    """The conversation with some user turns given to the virtual user; `turns` says which, the first never is."""
    seen = 0
    result = []
    for message in messages:
        if message.role == "user":
            seen += 1
            if seen > 1 and turns[seen - 1]:
                message = Message(role="virtual_user", content=message.content)
        result.append(message)
    return result


def _split_behind_images(processor: ChatProcessor, pieces: list[Segment], images: int) -> list[Segment]:
    head = pieces[0].text
    cut = head.rfind(processor.image_token) + len(processor.image_token) if images else 0
    if images and head.count(processor.image_token) != images:
        raise StllavaError(
            f"the prompt holds {head.count(processor.image_token)} image places for {images} images",
            expected="as many places as images",
            remedy=f"Remove {processor.image_token!r} from the conversation's text, or use the model's own chat template.",
        )
    if not images or cut == len(head):
        return pieces
    return [Segment(head[:cut], False), Segment(head[cut:], False), *pieces[1:]]


_MARK, _SAID = "\x02turn\x03", "-"


@lru_cache(maxsize=1024)
def _frame(processor: ChatProcessor, roles: tuple[Role, ...], images: int) -> tuple[tuple[str, str], ...]:
    """What the chat template writes before and behind each turn's content."""
    whole = _render(processor, roles, images)
    if len(whole) != len(roles) + 1:
        raise StllavaError(
            f"the chat template writes {len(whole) - 1} of {len(roles)} turns ({', '.join(roles)})",
            expected="a chat template that writes every turn once, virtual_user turns included",
            remedy="Use a processor whose template knows the role virtual_user, or set sq_r to 0 and ask nothing.",
        )
    frame: list[tuple[str, str]] = []
    for index in range(len(roles)):
        closed = _render(processor, roles[: index + 1], images)
        after = closed[-1]
        if not whole[index + 1].startswith(after):
            raise StllavaError(
                "the chat template changes earlier turns when later ones follow",
                expected="a template whose text only grows",
                remedy="Use another chat template.",
            )
        frame.append((whole[index] if index == 0 else whole[index][len(frame[-1][1]) :], after))
    return tuple(frame)


def _render(processor: ChatProcessor, roles: Sequence[Role], images: int) -> list[str]:
    first_user = roles.index("user") if "user" in roles else -1
    conversation: list[dict[str, object]] = []
    for index, role in enumerate(roles):
        places = [{"type": "image"}] * images if index == first_user else []
        conversation.append({"role": role, "content": [*places, {"type": "text", "text": _MARK}]})
    return processor.apply_chat_template(conversation, tokenize=False).split(_MARK)
