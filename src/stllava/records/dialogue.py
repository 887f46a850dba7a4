"""Images and turns about them: what sft learns from, and what the policy asks about."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stllava.records.record import Keyed, Record

Role = Literal["system", "user", "virtual_user", "assistant"]


class Message(Record):
    """One turn of a conversation."""

    role: Role
    """Who speaks; `virtual_user` is the model asking about the image itself (SQ-LLaVA's VUSER)."""
    content: str
    """The text, without image placeholders."""
    image_offsets: tuple[int, ...] = Field(default=(), exclude_if=lambda offsets: not offsets)
    """How many characters of `content` stand before each image that this user's turn shows, in ascending order.

    Empty in all turns, as in files written before there was this field: all images come first in the first user turn.
    Otherwise the turns name all images of the conversation, in its order. An importer takes the placeholders out and
    notes where they stood: "Is <image> older than <image>?" becomes "Is  older than ?" with the offsets 3 and 15. Where
    all placeholders stand in front of the first user's text it leaves the field empty, so that ids stay what they were.
    """

    @model_validator(mode="after")
    def _within_the_text(self) -> Self:
        offsets = self.image_offsets
        if offsets and (list(offsets) != sorted(offsets) or offsets[0] < 0 or offsets[-1] > len(self.content)):
            raise ValueError(f"image_offsets {offsets} are not ascending places in a text of {len(self.content)} characters")
        return self


class Image(Keyed):
    """An unlabelled image that the policy will ask about."""

    id: str
    """Hash of the path."""
    path: str
    """Relative to the image root."""


class Conversation(Keyed):
    """Labelled turns about images: what sft learns from."""

    id: str
    """Hash of images and messages, or the id the data set gave it."""
    images: tuple[str, ...]
    """Paths relative to the image root; shown in the first user turn unless the turns say where (`image_offsets`)."""
    messages: tuple[Message, ...]
    """The turns in order, the first one a user's (or a system message before it)."""
