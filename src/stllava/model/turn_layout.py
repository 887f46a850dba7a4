"""Who speaks in a conversation, and the order of texts and images in each turn, as chat templates take it."""

from collections.abc import Sequence

from stllava.errors import TextError
from stllava.records import Message, Role

IMAGE, TEXT = "I", "T"
PLACES = "image places"

Layout = tuple[tuple[Role, str], ...]
"""The turns: who speaks, and the order of texts and images in it, such as TIT."""


def layout_of(messages: Sequence[Message], *, images: int) -> Layout:
    """Who speaks, and where in which turn the images are shown."""
    named = sum(len(message.image_offsets) for message in messages)
    if not named:
        first = next((index for index, message in enumerate(messages) if message.role == "user"), -1)
        return tuple((one.role, IMAGE * images * (index == first) + TEXT) for index, one in enumerate(messages))
    if named != images:
        raise TextError(PLACES, f"the turns name {named} places for {images} images")
    if any(message.image_offsets and message.role != "user" for message in messages):
        raise TextError(PLACES, "a turn that is not the user's shows an image")
    return tuple((one.role, "".join(IMAGE if text is None else TEXT for text in parts_of(one))) for one in messages)


def parts_of(message: Message) -> list[str | None]:
    """The texts of a turn in order, None where an image stands between them."""
    if not message.image_offsets:
        return [message.content]
    parts: list[str | None] = []
    begin = 0
    for offset in message.image_offsets:
        parts += [*([message.content[begin:offset]] if offset > begin else []), None]
        begin = offset
    return [*parts, *([message.content[begin:]] if begin < len(message.content) else [])]


def conversation_of(layout: Layout, texts: Sequence[str]) -> list[dict[str, object]]:
    """A conversation with this layout and these texts as chat templates take it."""
    following = iter(texts)
    turns: list[dict[str, object]] = []
    for role, shape in layout:
        parts: list[dict[str, str]] = [
            {"type": "image"} if part == IMAGE else {"type": "text", "text": next(following)} for part in shape
        ]
        turns.append({"role": role, "content": parts})
    return turns
