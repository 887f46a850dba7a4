"""What ask, answer and evaluate need of a policy: text for prompts, from this process or from a server."""

from collections.abc import Callable, Mapping, Sequence
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


class RefusedPromptsError(Exception):
    """Prompts that a server refuses for their own sake, such as those too long for it, and what it said to the others."""

    def __init__(self, refused: Mapping[int, ItemError], said: Sequence[tuple[Completion, ...]]) -> None:
        super().__init__(f"{len(refused)} prompts were refused")
        self.refused = dict(refused)
        """Why, by the prompt's place."""
        self.said = list(said)
        """The completions of the other prompts, in their order."""


class Sampler(Protocol):
    """A policy that speaks."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the manifest must know of how it speaks."""

    def close(self) -> None:
        """End what it has started."""

    def check(self, prompt: Prompt) -> None:
        """Raise ItemError when the prompt's images or its text cannot be used."""

    def complete(
        self, prompts: Sequence[Prompt], *, k: int, sampling: SamplingOptions, seed: int
    ) -> list[tuple[Completion, ...]]:
        """K completions of every prompt; a completion depends on its prompt, its number and the seed alone.

        Raises RefusedPromptsError where some prompts cannot be completed and others were.
        """


def complete_usable(
    sampler: Sampler,
    items: Sequence[Item],
    prompts: Sequence[Prompt],
    dropped: Dropped,
    *,
    k: int,
    sampling: SamplingOptions,
    seed: int,
    outputs: int = 1,
) -> tuple[list[Item], list[tuple[Completion, ...]]]:
    """The items whose prompts can be completed and their completions; the others are `dropped`, each of so many outputs."""
    try:
        return list(items), sampler.complete(prompts, k=k, sampling=sampling, seed=seed)
    except RefusedPromptsError as error:
        for fault in error.refused.values():
            dropped.fault(fault, of="image", outputs=outputs)
        return [item for place, item in enumerate(items) if place not in error.refused], error.said


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
