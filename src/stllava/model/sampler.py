"""What ask, answer and evaluate need of a policy: text for prompts, from this process or from a server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from stllava.config import SamplingOptions
from stllava.dropped import Dropped
from stllava.errors import ItemError
from stllava.records import Message, Role

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prompt:
    """What a policy is to continue."""

    messages: tuple[Message, ...]
    """The turns so far, without image places."""
    images: tuple[str, ...]
    """Paths relative to the image root."""
    speaker: Role = "assistant"
    """Who speaks next."""


@dataclass(frozen=True)
class Completion:
    """What was said."""

    text: str
    """Without the end of the turn and without white space around it."""
    log_probability: float | None = None
    """Natural logarithm of the untempered probability of the text and its end of turn; None where it is not known
    or the text, split into tokens again, is not what was sampled."""
    finished: bool = True
    """Whether it came to its own end rather than to the last token it may have."""


class Sampler(Protocol):
    """A policy that speaks."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the manifest must know of how it speaks."""

    def check(self, prompt: Prompt) -> None:
        """Raise ItemError when the prompt's images or its text cannot be used."""

    def complete(
        self, prompts: Sequence[Prompt], *, k: int, sampling: SamplingOptions, seed: int
    ) -> list[tuple[Completion, ...]]:
        """K completions of every prompt; a completion depends on its prompt, its number and the seed alone."""


def usable(
    sampler: Sampler, items: Sequence[Item], ask: Callable[[Item], Prompt], *, outputs: int = 1
) -> tuple[list[Item], list[Prompt], Dropped]:
    """The items whose images and text can be used, what `ask` makes of each, and the others, each of so many outputs."""
    kept: list[Item] = []
    prompts: list[Prompt] = []
    dropped = Dropped()
    for item in items:
        asked = ask(item)
        try:
            sampler.check(asked)
        except ItemError as error:
            dropped.fault(error, of="image", outputs=outputs)
        else:
            kept.append(item)
            prompts.append(asked)
    return kept, prompts, dropped
