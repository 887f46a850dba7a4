"""`stllava compose`: a new LLaVA from a vision tower and a language model."""

from pathlib import Path

from stllava.commands.telling import tell
from stllava.config import ComposeOptions
from stllava.store import Existing


def compose(options: ComposeOptions, *, to: Path, seed: int = 0, existing: Existing = "resume") -> None:
    """Write a new LLaVA: it cannot see before its projector has learned captions (sft with the other rates at 0).

    Args:
        options: Its parts.
        to: The new folder.
        seed: Seed of the projector's weights.
        existing: What to do with output that is there: resume it, replace it, or end in an error.
    """
    from stllava.model.compose import compose as write

    tell(write(options, to=to, seed=seed, existing=existing))
