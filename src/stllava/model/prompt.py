"""From messages to text and tokens: the one place that says what is learned from.

A conversation becomes segments in the chat template's own words. What is learned are the assistant's turns and the
virtual user's, each with what ends it; nothing else is. Training and generation build their tokens from the same
segments, so a prompt is cut the same way whether it is learned behind or continued.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from jinja2 import TemplateError

from stllava.errors import StllavaError
from stllava.records import Message, Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEARNED: frozenset[Role] = frozenset({"assistant", "virtual_user"})


class ChatProcessor(Hashable, Protocol):
    """What prompts need of a transformers processor."""

    chat_template: str
    image_token: str
    tokenizer: "PreTrainedTokenizerBase"

    def apply_chat_template(self, conversation: list[dict[str, object]], *, tokenize: bool) -> str:
        """Render a conversation."""


@dataclass(frozen=True)
class Segment:
    """A stretch of prompt text."""

    text: str
    learn: bool


def segments(processor: ChatProcessor, messages: Sequence[Message], *, images: int) -> list[Segment]:
    """The conversation's text, cut where learning starts and stops; the first segment ends behind the images."""
    turns, behind = _frame(processor, tuple(message.role for message in messages), images)
    pieces: list[Segment] = []
    pending = ""
    for message, turn in zip(messages, turns, strict=True):
        pending += turn.opening
        if message.role in LEARNED:
            pieces += [Segment(pending, False), Segment(turn.blank + message.content + turn.ending, True)]
            pending = ""
        else:
            pending += message.content
    pending += behind
    if pending.strip():
        pieces.append(Segment(pending, False))
    return _split_behind_images(processor, pieces, images)


def prompt(processor: ChatProcessor, messages: Sequence[Message], *, images: int, speaker: Role) -> tuple[list[Segment], str]:
    """The conversation's text up to where `speaker` begins to speak, and what stands behind what is said."""
    opened = [*messages, Message(role=speaker, content=_SAID)]
    pieces = segments(processor, opened, images=images)
    while not pieces[-1].learn:
        pieces.pop()
    return pieces[:-1], pieces[-1].text.lstrip(" ").removeprefix(_SAID)


def self_question(messages: Sequence[Message], turns: Sequence[bool]) -> list[Message]:
    """The conversation with some user turns given to the virtual user; `turns` says which.

    The first never is, nor is one that shows images.
    """
    seen = 0
    result = []
    for message in messages:
        if message.role == "user":
            seen += 1
            if seen > 1 and turns[seen - 1] and not message.image_offsets:
                message = Message(role="virtual_user", content=message.content)
        result.append(message)
    return result


@lru_cache(maxsize=64)
def virtual_role(processor: ChatProcessor) -> Role:
    """How the chat template is told of the virtual user: by its own role where it opens a turn of its own for it.

    Elsewhere (the template rejects the role, leaves it out or takes it for the assistant's) it speaks as a user does.
    """
    talk: tuple[Role, ...] = ("user", "assistant", "virtual_user", "assistant")
    try:
        whole, before = _render(processor, talk, 0), _render(processor, talk[:2], 0)
    except TemplateError:
        return "user"
    if len(whole) != len(talk) + 1:
        return "user"
    opening = whole[2].removeprefix(before[2].rstrip()).strip()
    return "virtual_user" if opening and opening not in before[0] + before[1] else "user"


def closing(processor: ChatProcessor) -> str:
    """What ends a turn of the assistant."""
    return _frame(processor, ("user", "assistant"), 0)[0][1].ending


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


@dataclass(frozen=True)
class _Turn:
    """What is written around a turn's content."""

    opening: str
    """What stands before it and is not learned."""
    blank: str = ""
    """What a learned turn begins with: the blank before its first word, where the tokenizer does not write it itself."""
    ending: str = ""
    """What a learned turn ends with."""


@lru_cache(maxsize=1024)
def _frame(processor: ChatProcessor, roles: tuple[Role, ...], images: int) -> tuple[tuple[_Turn, ...], str]:
    """What the chat template writes around each turn's content, and behind the last."""
    virtual = virtual_role(processor) if "virtual_user" in roles else "virtual_user"
    told = tuple(virtual if role == "virtual_user" else role for role in roles)
    try:
        gaps = _render(processor, told, images)
        closed = [
            _render(processor, told[: index + 1], images)[-1].rstrip() if role in LEARNED else ""
            for index, role in enumerate(roles)
        ]
    except TemplateError as error:
        raise _refusal(roles, f"refuses the turns {', '.join(roles)} ({error})") from error
    if len(gaps) != len(roles) + 1:
        raise _refusal(roles, f"writes {len(gaps) - 1} of {len(roles)} turns ({', '.join(roles)})")
    turns: list[_Turn] = []
    pending = _start(processor, gaps[0]) + gaps[0]
    for role, written, gap in zip(roles, closed, gaps[1:], strict=True):
        if not gap.startswith(written):
            raise _refusal(roles, "changes earlier turns when later ones follow")
        if role in LEARNED:
            opening = pending.rstrip(" ")
            blank = "" if _writes_blanks(processor) else pending[len(opening) :]
            ending, pending = (written, gap[len(written) :]) if _stops(processor, written) else (_end(processor), gap)
            turns.append(_Turn(opening, blank, ending))
        else:
            turns.append(_Turn(pending))
            pending = gap
    return tuple(turns), pending


def _refusal(roles: Sequence[Role], found: str) -> StllavaError:
    return StllavaError(
        f"the chat template {found}",
        expected="one that writes every turn once and leaves it as it is when others follow",
        remedy="Put a chat_template.jinja that does into the model's folder (docs/families.md has one)"
        + (", or set sq_r to 0 and ask nothing." if "virtual_user" in roles else ", or leave such turns out."),
    )


def _start(processor: ChatProcessor, text: str) -> str:
    """The token that begins a text, where the tokenizer writes it of its own accord and the template does not."""
    tokenizer = processor.tokenizer
    first, begins = tokenizer("")["input_ids"][:1], tokenizer.bos_token
    return str(begins) if begins and first == [tokenizer.bos_token_id] and not text.startswith(begins) else ""


def _writes_blanks(processor: ChatProcessor) -> bool:
    """Whether the tokenizer writes a blank before the first word of whatever it is given, as SentencePiece's do."""
    return not processor.tokenizer.tokenize(_SAID)[0].startswith(_SAID)


def _stops(processor: ChatProcessor, ending: str) -> bool:
    """Whether a turn's end begins with a special token: what is said ends there."""
    special = [str(token) for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    return ending.lstrip().startswith(tuple(special))


def _end(processor: ChatProcessor) -> str:
    """The tokenizer's end token, for turns that the template closes with plain text or, as LLaVA-1.5's, with nothing.

    Without it a model would never learn to stop, and a question would be followed by what closes a user's turn.
    """
    end = processor.tokenizer.eos_token
    if end is None:
        raise StllavaError(
            "neither the chat template nor the tokenizer has a token that ends a turn",
            expected="a tokenizer with an eos_token",
            remedy="Name it in the tokenizer_config.json of the model's folder.",
        )
    return str(end)


def _render(processor: ChatProcessor, roles: Sequence[Role], images: int) -> list[str]:
    """What the template writes before, between and behind the turns, given just these roles."""
    first_user = roles.index("user") if "user" in roles else -1
    conversation: list[dict[str, object]] = []
    for index, role in enumerate(roles):
        places = [{"type": "image"}] * images if index == first_user else []
        conversation.append({"role": role, "content": [*places, {"type": "text", "text": _MARK}]})
    return processor.apply_chat_template(conversation, tokenize=False).split(_MARK)
