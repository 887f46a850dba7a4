"""What a chat template writes around texts, found out by rendering it with marks in their places.

Reads the chat template of a processor; writes nothing. A template that can think is told not to (`enable_thinking`): what
it then writes before an answer, an empty thought perhaps, belongs to the opening of the answer's turn.

By hand, because transformers' own mask of the assistant's tokens (`return_assistant_tokens_mask`) needs `{% generation %}` in
the template, which few of them have, and marks no turns of a virtual user.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from jinja2 import TemplateError

from stllava.errors import StllavaError
from stllava.model.tokens import spellings
from stllava.model.turn_layout import IMAGE, TEXT, Layout, conversation_of
from stllava.records import Role

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEARNED: frozenset[Role] = frozenset({"assistant", "virtual_user"})
SWITCH = "enable_thinking"
"""The variable by which chat templates are told whether the model is to think before it answers."""
CLOCK = "strftime_now"
"""The function by which chat templates write the day (Mistral Small 3)."""
DAY = datetime(2026, 1, 1)  # noqa: DTZ001 - a day of no place in particular
"""What they are told it is: a prompt is the same whenever it is learned, continued or resumed."""
DIRECTIVES = ("-d", "-m", *"aAbBcdeHIjmMpSuwxXyYZ")
"""What a template may ask of a day; `%-d` is written before `%d` is."""
REFUSED = "turns that the chat template refuses"
MARK, SAID = "\x02turn\x03", "-"


class ChatProcessor(Hashable, Protocol):
    """What prompts need of a transformers processor."""

    chat_template: str
    image_token: str
    tokenizer: "PreTrainedTokenizerBase"

    def apply_chat_template(
        self,
        conversation: list[dict[str, object]],
        *,
        tokenize: bool,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **variables: object,
    ) -> str:
        """Render a conversation."""


class RefusedTurnsError(StllavaError):
    """Turns that the chat template does not write; other conversations may go."""


@dataclass(frozen=True)
class Around:
    """What is written around a text."""

    opening: str
    """What stands before it and is not learned."""
    blank: str = ""
    """What a learned text begins with: the white space before its first word, where the tokenizer does not write it."""
    ending: str = ""
    """What a learned text ends with."""


@dataclass(frozen=True)
class TurnFrame:
    """What a chat template writes around the texts of a conversation."""

    texts: tuple[Around, ...]
    """Around each text in order; a turn that shows images between words has several."""
    asked: tuple[Around, ...]
    """The same where each answer stands behind what the template writes to ask for it."""
    behind: str
    """Behind the last."""
    lasting: bool
    """Whether every learned turn stands behind the very text behind which it is generated, so that one text teaches all."""
    in_order: bool
    """Whether the images stand between the texts as they were given."""


@lru_cache(maxsize=1024)
def frame_of(processor: ChatProcessor, layout: Layout) -> TurnFrame:
    """What the chat template writes around the texts of a conversation with this layout."""
    told = as_told(processor, layout)
    roles = [role for role, _ in layout]
    learned = [index for index, role in enumerate(roles) if role in LEARNED]
    shapes = [shape for _, shape in layout]
    try:
        gaps = gaps_of(processor, told)
        cut = {index: gaps_of(processor, told[: index + 1]) for index in learned}
        for index, written in {len(roles) - 1: gaps, **cut}.items():
            if len(written) != sum(shape.count(TEXT) for shape in shapes[: index + 1]) + 1:
                raise _refusal(roles, f"writes {len(written) - 1} of {index + 1} turns ({', '.join(roles[: index + 1])})")
        asked = {index: _opened(processor, told[:index], cut[index][-2]) for index in learned if roles[index] == "assistant"}
    except TemplateError as error:
        raise _refusal(roles, f"refuses the turns {', '.join(roles)} ({error})") from error
    begins = [begun(processor, gaps[0]), *gaps[1:]]
    texts: list[Around] = []
    openings: list[Around] = []
    lasting = True
    for index, (role, shape) in enumerate(layout):
        place = len(texts)
        if role not in LEARNED:
            texts += [Around(begin) for begin in begins[place : place + shape.count(TEXT)]]
            openings += texts[place:]
            continue
        closed = cut[index][-1].rstrip()
        if not gaps[place + 1].startswith(closed):
            raise _refusal(roles, "changes earlier turns when later ones follow")
        told_before = _stripped(gaps[place])
        before = asked[index] if index in asked else _left_open(processor, told[index][0], gaps[place])
        lasting &= index + 1 == len(layout) or (cut[index][:-1] == gaps[: place + 1] and "".join(before) == gaps[place])
        ending = closed if _stops(processor, closed) else _end(processor)
        ended = len(gaps[place]) - len(begins[place])  # What ended the turn before is no opening.
        for found, (opening, blank) in ((texts, told_before), (openings, before)):
            kept = "" if not blank.strip(" ") and _writes_blanks(processor) else blank
            found.append(Around(opening[ended:] if place else begun(processor, opening), kept, ending))
        if _stops(processor, closed):
            begins[place + 1] = gaps[place + 1][len(closed) :]
    between = [len(images) for images in "".join(shapes).split(TEXT)]
    in_order = [gap.count(processor.image_token) for gap in gaps] == between
    return TurnFrame(tuple(texts), tuple(openings), begins[-1], lasting, in_order)


def _opened(processor: ChatProcessor, told: Layout, before: str) -> tuple[str, str]:
    """What stands before an answer that is asked for, and the white space with which it begins.

    `before` is what the template writes before an answer that is there already. It holds unless the template asks for an
    answer in other words when it is told not to think: models that think know those.
    """
    if not told:
        return _stripped(before)
    asked = gaps_of(processor, told, ask=True)[-1].rstrip(" ")
    if asked == gaps_of(processor, told)[-1].rstrip(" "):
        return _stripped(before)
    if before.startswith(asked) and not before[len(asked) :].strip():
        return asked, before[len(asked) :]
    if thinks(processor) and asked != gaps_of(processor, told, ask=True, think=True)[-1].rstrip(" "):
        return asked, ""
    return _left_open(processor, "assistant", before)


def _left_open(processor: ChatProcessor, role: Role, before: str) -> tuple[str, str]:
    """What stands before a turn that a server is to go on with, still empty, and the white space with which it begins.

    Where the template trims its texts the server's prompt ends before all white space (transformers drops it with what is
    trimmed), so that it is said as the first words are.
    """
    return (before.rstrip(), before[len(before.rstrip()) :]) if _trims(processor, role) else _stripped(before)


@lru_cache(maxsize=64)
def _trims(processor: ChatProcessor, role: Role) -> bool:
    """Whether the template takes away the white space that a text of this role ends with."""
    speakers: tuple[Role, ...] = ("user", "assistant", "virtual_user")
    layout: Layout = tuple((one, TEXT) for one in speakers[: speakers.index(role) + 1])
    written = render(processor, conversation_of(layout, [f"{MARK}\t"] * len(layout)))
    return not written.rpartition(MARK)[2].startswith("\t")


def asks_as_here(processor: ChatProcessor, layout: Layout) -> bool:
    """Whether the template, asked for an answer to these turns, writes what stands before it here."""
    told = as_told(processor, layout)
    before = gaps_of(processor, (*told, ("assistant", TEXT)))[-2]
    return _opened(processor, told, before)[0] == gaps_of(processor, told, ask=True)[-1].rstrip(" ")


def _stripped(text: str) -> tuple[str, str]:
    """A text without the blanks it ends with, and these."""
    opening = text.rstrip(" ")
    return opening, text[len(opening) :]


@lru_cache(maxsize=64)
def virtual_role(processor: ChatProcessor) -> Role:
    """How the chat template is told of the virtual user: by its own role where it opens a turn of its own for it.

    Elsewhere (the template rejects the role, leaves it out or takes it for the assistant's) it speaks as a user does.
    """
    roles: tuple[Role, ...] = ("user", "assistant", "virtual_user", "assistant")
    talk: Layout = tuple((role, TEXT) for role in roles)
    try:
        whole, before = gaps_of(processor, talk), gaps_of(processor, talk[:2])
    except TemplateError:
        return "user"
    if len(whole) != len(talk) + 1:
        return "user"
    opening = whole[2].removeprefix(before[2].rstrip()).strip()
    return "virtual_user" if opening and opening not in before[0] + before[1] else "user"


def as_told(processor: ChatProcessor, layout: Layout) -> Layout:
    """The layout with the virtual user by the role that the chat template knows it by."""
    virtual = virtual_role(processor) if any(role == "virtual_user" for role, _ in layout) else "virtual_user"
    return tuple((virtual if role == "virtual_user" else role, shape) for role, shape in layout)


def closing(processor: ChatProcessor) -> str:
    """What ends a turn of the assistant."""
    return frame_of(processor, (("user", TEXT), ("assistant", TEXT))).texts[1].ending


@lru_cache(maxsize=64)
def endings(processor: ChatProcessor) -> frozenset[str]:
    """What ends a turn of the assistant, and one of the virtual user where the template can hold one."""
    talk: Layout = (("user", TEXT), ("assistant", TEXT), ("virtual_user", TEXT), ("assistant", TEXT))
    try:
        return frozenset({closing(processor), frame_of(processor, talk).texts[2].ending})
    except StllavaError:  # A template that holds one question only: its model is never asked to ask.
        return frozenset({closing(processor)})


@lru_cache(maxsize=64)
def special_tokens(processor: ChatProcessor) -> tuple[str, ...]:
    """What no text may be taken for: special tokens, what stands for an image, and added tokens that the template writes."""
    added = processor.tokenizer.added_tokens_decoder.values()
    talk: Layout = (("user", IMAGE + TEXT), ("assistant", TEXT), ("user", TEXT))
    try:
        written = "\n".join(gaps_of(processor, talk))
    except TemplateError:
        written = "\n".join(gaps_of(processor, talk[:1]))
    names = {token.content for token in added if token.special or (token.content in written and token.content.strip())}
    return tuple(sorted({*names, processor.image_token}))


@lru_cache(maxsize=64)
def spellings_of(processor: ChatProcessor) -> re.Pattern[str]:
    """What finds in a text what it may not be taken for."""
    return spellings(special_tokens(processor))


def thinks(processor: ChatProcessor) -> bool:
    """Whether the chat template can be told not to think."""
    return SWITCH in processor.chat_template


def render(
    processor: ChatProcessor,
    conversation: list[dict[str, object]],
    *,
    ask: bool = False,
    go_on: bool = False,
    think: bool = False,
) -> str:
    """The conversation in the template's words, up to where an answer (`ask`) or more of the last turn (`go_on`) begins."""
    variables = {SWITCH: think} if thinks(processor) else {}
    told = {"chat_template": _DAY + processor.chat_template} if CLOCK in processor.chat_template else {}
    return processor.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=ask, continue_final_message=go_on, **told, **variables
    )


_DAY = (
    f"{{%- macro {CLOCK}(form) -%}}{{{{ form"
    + "".join(f" | replace('%{letter}', '{DAY.strftime(f'%{letter}')}')" for letter in DIRECTIVES)
    + " }}{%- endmacro -%}"
)
"""Stands before a template and takes the place of transformers' clock, for which no variable may stand."""


def begun(processor: ChatProcessor, text: str) -> str:
    """A rendered conversation behind the token that begins a text."""
    return _start(processor, text) + text


@lru_cache(maxsize=4096)
def gaps_of(processor: ChatProcessor, layout: Layout, *, ask: bool = False, think: bool = False) -> tuple[str, ...]:
    """What the template writes before, between and behind texts, given just these turns."""
    marks = [MARK] * sum(shape.count(TEXT) for _, shape in layout)
    return tuple(render(processor, conversation_of(layout, marks), ask=ask, think=think).split(MARK))


def _refusal(roles: Sequence[Role], found: str) -> RefusedTurnsError:
    return RefusedTurnsError(
        f"the chat template {found}",
        expected="one that writes every turn once and leaves it as it is when others follow",
        remedy="Put a chat_template.jinja that does into the model's folder (docs/families.md has one)"
        + (", or set self_question_ratio to 0 and ask nothing." if "virtual_user" in roles else ", or leave such turns out."),
    )


def _start(processor: ChatProcessor, text: str) -> str:
    """The token that begins a text, where the tokenizer writes it of its own accord and the template does not."""
    tokenizer = processor.tokenizer
    first, begins = tokenizer("")["input_ids"][:1], tokenizer.bos_token
    return str(begins) if begins and first == [tokenizer.bos_token_id] and not text.startswith(begins) else ""


def _writes_blanks(processor: ChatProcessor) -> bool:
    """Whether the tokenizer writes a blank before the first word of whatever it is given, as SentencePiece's do."""
    return not processor.tokenizer.tokenize(SAID)[0].startswith(SAID)


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
