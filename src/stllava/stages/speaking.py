"""What ask, answer, evaluate and predict have in common: chunks that a policy is asked about, wherever they are worked on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stllava.config import GenerationOptions
from stllava.dropped import Dropped

if TYPE_CHECKING:
    from stllava.generation.sampler import Sampler


@dataclass(frozen=True)
class SamplingWork:
    """Work that a policy speaks in; can be sent to another process until it is first called, which opens the policy."""

    options: GenerationOptions
    """How it speaks."""
    policy: Path
    """Its folder, or its name on the hub."""
    weights: str
    """Fingerprint of its weights."""
    root: Path
    """The image root."""
    audit: Path
    """Folder where images that are sent to a server are noted."""

    @cached_property
    def sampler(self) -> "Sampler":
        """The policy, once it is asked."""
        from stllava.generation.local_sampler import open_sampler

        return open_sampler(self.options, policy=self.policy, root=self.root, audit=self.audit)

    @property
    def device(self) -> str:
        """Where it computes."""
        return self.sampler.device

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the manifest must know of how it speaks."""
        return self.sampler.notes

    @property
    def outputs(self) -> int:
        """What an item would have come to, for counting one that is set aside."""
        return 1

    def set_aside(self, chunk: Sequence[Any], detail: str) -> tuple[list[Any], Dropped]:
        """Nothing of a chunk that nobody can work on, and its items counted."""
        return [], Dropped.set_aside(len(chunk) * self.outputs, detail)

    def close(self) -> None:
        """End what the policy has started, servers say."""
        if "sampler" in self.__dict__:
            self.sampler.close()
            del self.__dict__["sampler"]
