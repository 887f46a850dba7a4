"""From messages to text and tokens: the one place that says what is learned from.

A conversation becomes segments in the chat template's own words. What is learned are the assistant's turns and the
virtual user's, each with what ends it; nothing else is. Training and generation build their tokens from the same
segments, so a prompt is cut the same way whether it is learned behind or continued. What a text spells stays text: its
special tokens are marked (model/tokens.py). A server is sent only what its template writes as it is written here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stllava.errors import StllavaError, TextError
from stllava.model.template import (
    LEARNED,
    REFUSED,
    SAID,
    SWITCH,
    Around,
    ChatProcessor,
    RefusedTurnsError,
    TurnFrame,
    as_told,
    asks_as_here,
    closing,
    endings,
    frame_of,
    gaps_of,
    render,
    spellings_of,
    thinks,
    virtual_role,
)
from stllava.model.tokens import BEGIN, SPELLED, is_marked, spelled
from stllava.model.turn_layout import PLACES, TEXT, conversation_of, layout_of, parts_of
from stllava.records import Message, Role

__all__ = [
    "REFUSED",
    "ChatProcessor",
    "Lesson",
    "OpenTurn",
    "RefusedTurnsError",
    "Segment",
    "ServerTurn",
    "closing",
    "endings",
    "lessons_of",
    "open_turn",
    "prompt",
    "said_in",
    "segments",
    "self_question",
    "server_turn",
    "virtual_role",
]


WORDS_APART = frozenset({"Idefics2Processor"})
"""Processors that write a blank between an image and the word behind it."""


@dataclass(frozen=True)
class Segment:
    """A stretch of prompt text."""

    text: str
    learn: bool


@dataclass(frozen=True)
class Lesson:
    """What is learned of a conversation in one go."""

    segments: tuple[Segment, ...]
    """Its text; the first segment ends behind the images."""
    images: int
    """How many of the conversation's images are shown by then."""


@dataclass(frozen=True)
class OpenTurn:
    """A conversation up to where a speaker begins to speak."""

    before: tuple[Segment, ...]
    """What stands there by then."""
    blank: str
    """The white space with which what is said begins."""
    ending: str
    """What stands behind what is said."""


@dataclass(frozen=True)
class ServerTurn:
    """How a server that renders the chat template is brought to let a speaker begin to speak."""

    variables: dict[str, bool]
    """What its template is told."""
    continues: bool
    """Whether it goes on with a turn that stands there, still empty, instead of opening one for the assistant."""


def segments(processor: ChatProcessor, messages: Sequence[Message], *, images: int) -> list[Segment]:
    """The conversation's text, cut where learning starts and stops; the first segment ends behind the images.

    Every answer stands behind what the template writes to ask for it, an empty thought perhaps. Raises TextError where
    the template does not show the images where the turns have them.
    """
    frame = _frame(processor, messages, images)
    return _written(processor, messages, frame.asked, behind=frame.behind, images=images)


def lessons_of(processor: ChatProcessor, messages: Sequence[Message], *, images: int) -> list[Lesson]:
    """What training reads of a conversation: all learned turns in one text, each behind that from which it is generated.

    Two things cut it. An answer to a turn that shows an image is learned behind that image, those before it without it.
    And where the template leaves out of earlier turns what it writes in the last, such as an empty thought, every turn is
    learned from a text of its own.
    """
    layout_of(messages, images=images)  # It refuses turns that do not show all images of the conversation.
    shown = [index for index, message in enumerate(messages) if message.image_offsets]
    lessons = []
    for begin, end in zip(shown or [0], [*shown[1:], len(messages)], strict=True):
        # What stands before an image is the same for all that is learned behind it, whoever asks in this epoch.
        earlier = [Message(**{**dict(one), "role": "user"}) if one.role == "virtual_user" else one for one in messages[:begin]]
        part = [*earlier, *messages[begin:end]]
        seen = sum(len(message.image_offsets) for message in part) if shown else images
        learned = [index for index, message in enumerate(part) if index >= begin and message.role in LEARNED]
        if not learned:
            continue
        if _frame(processor, part, seen).lasting:
            lessons.append(Lesson(tuple(segments(processor, part, images=seen)), seen))
            continue
        for index in learned:
            turn = open_turn(processor, part[:index], images=seen, speaker=part[index].role)
            before = [replace(piece, learn=False) for piece in turn.before]
            lessons.append(Lesson((*before, said_in(processor, turn, part[index].content)), seen))
    return lessons


def prompt(processor: ChatProcessor, messages: Sequence[Message], *, images: int, speaker: Role) -> tuple[list[Segment], str]:
    """The conversation's text up to where `speaker` begins to speak, and what stands behind what is said."""
    turn = open_turn(processor, messages, images=images, speaker=speaker)
    return list(turn.before), turn.ending


def open_turn(processor: ChatProcessor, messages: Sequence[Message], *, images: int, speaker: Role) -> OpenTurn:
    """The conversation up to where `speaker` begins to speak, earlier turns as the template writes them behind others."""
    opened = [*messages, Message(role=speaker, content=SAID)]
    frame = _frame(processor, opened, images)
    pieces = _written(processor, opened, (*frame.texts[:-1], frame.asked[-1]), behind="", images=images)
    return OpenTurn(tuple(pieces[:-1]), frame.asked[-1].blank, frame.asked[-1].ending)


def said_in(processor: ChatProcessor, turn: OpenTurn, text: str, *, ended: bool = True) -> Segment:
    """What is said in an open turn, as it is learned; one that was cut off before it `ended` has no end of turn."""
    return Segment(turn.blank + spelled(text, spellings_of(processor)) + (turn.ending if ended else ""), True)


def _frame(processor: ChatProcessor, messages: Sequence[Message], images: int) -> TurnFrame:
    """The frame of a conversation whose images the template shows where they stand, or before a turn that they stand behind.

    Half of LLaVA's own questions have the image behind them, and LLaVA itself puts it first; a template that shows a turn's
    images before its text does so too, and no word of the text is torn from its image.
    """
    frame = frame_of(processor, layout_of(messages, images=images))
    if frame.in_order or not any(message.image_offsets for message in messages):
        return frame
    frame = frame_of(processor, layout_of([_images_first(message) for message in messages], images=images))
    if not frame.in_order:
        raise TextError(PLACES, "the chat template shows the images elsewhere than where the text has them")
    return frame


def _images_first(message: Message) -> Message:
    """A turn with its images before its text where all stand behind it, else as it is."""
    offsets = message.image_offsets
    behind = bool(offsets) and offsets[0] == len(message.content)
    return message.model_copy(update={"image_offsets": (0,) * len(offsets)}) if behind else message


def _written(
    processor: ChatProcessor, messages: Sequence[Message], around: Sequence[Around], *, behind: str, images: int
) -> list[Segment]:
    """The texts with what stands around them."""
    texts = [(message.role, text) for message in messages for text in parts_of(message) if text is not None]
    pieces: list[Segment] = []
    pending = ""
    for (role, text), its in zip(texts, around, strict=True):
        pending += its.opening
        said = spelled(text, spellings_of(processor))
        if role in LEARNED:
            pieces += [Segment(pending, False)] if pending else []
            pieces.append(Segment(its.blank + said + its.ending, True))
            pending = ""
        else:
            pending += said
    pending += behind
    if pending.strip():
        pieces.append(Segment(pending, False))
    return _split_behind_images(processor, pieces, images)


def server_turn(processor: ChatProcessor, messages: Sequence[Message], *, images: int, speaker: Role) -> ServerTurn:
    """How a server with this chat template lets `speaker` speak behind the text that is put before the model here.

    Raises TextError for a conversation that the template would write differently: it holds a special token, or words that
    the template cuts or changes, more than the white space around them.
    """
    layout = layout_of(messages, images=images)
    texts = [text for message in messages for text in parts_of(message) if text is not None]
    if any(is_marked(spelled(text, spellings_of(processor))) for text in texts):
        raise TextError(SPELLED, "a server would take it for the token itself")
    continues = speaker != "assistant" or not asks_as_here(processor, layout)
    layout = as_told(processor, (*layout, (speaker, TEXT)) if continues else layout)
    gaps = gaps_of(processor, layout, ask=not continues)
    wanted = "".join(gap + text for gap, text in zip(gaps, [*texts, ""], strict=False))
    texts += [""] if continues else []
    written = render(processor, conversation_of(layout, texts), ask=not continues, go_on=continues)
    here = open_turn(processor, messages, images=images, speaker=speaker).before[-1].text
    if "".join(written.split()) != "".join(wanted.split()) or _white_end(written) != _white_end(here):
        raise TextError("changed by the chat template", "a server would not put the text before the model as it is")
    return ServerTurn({SWITCH: False} if thinks(processor) else {}, continues)


def _white_end(text: str) -> str:
    """The white space that a text ends with, but for blanks, which belong to what follows."""
    return text.rstrip(" ")[len(text.rstrip()) :]


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


def _split_behind_images(processor: ChatProcessor, pieces: list[Segment], images: int) -> list[Segment]:
    """The segments with all up to the last image as the first, and so never learned."""
    place = re.compile(f"(?<!{BEGIN}){re.escape(processor.image_token)}")
    found = [(index, match.end()) for index, piece in enumerate(pieces) for match in place.finditer(piece.text)]
    if len(found) != images:
        raise StllavaError(
            f"the prompt holds {len(found)} image places for {images} images",
            expected="as many places as images",
            remedy="Use the model's own chat template: this one writes an image other than once.",
        )
    if not images:
        return pieces
    index, cut = found[-1]
    head, rest = pieces[index].text[:cut], _apart(processor, processor.image_token + pieces[index].text[cut:])
    rest = rest.removeprefix(processor.image_token)
    before = "".join(piece.text for piece in pieces[:index])
    return [Segment(before + head, False), *([Segment(rest, False)] if rest else []), *pieces[index + 1 :]]


def _apart(processor: ChatProcessor, text: str) -> str:
    """The text as the processor splits it, which may write a blank between an image and the word behind it."""
    if type(processor).__name__ not in WORDS_APART:
        return text
    place = f"(?<!{BEGIN}){re.escape(processor.image_token)}(?=[^\\s<{BEGIN}])"
    return re.sub(place, lambda found: f"{found.group()} ", text)
