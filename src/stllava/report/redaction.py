"""What goes out with a model must not tell of the machine that made it: no paths, no addresses, no names of images."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stllava.config import Options
from stllava.records import content_id
from stllava.report.run_files import RunFiles

HIDDEN = "(hidden)"
ADDRESSES = frozenset({"url", "key_variable"})
"""Options that say where a server is and how its key is found."""
MODELS = frozenset({"model", "vision", "language"})
"""Options that hold a folder, a name on the hub, or what a server calls a model, which may be its folder."""
_PLACE = re.compile(r"https?://\S+|(?<![\w/.:<])(?:~|\.\.?)?/[\w.@+~-]+(?:/[\w.@+~-]*)*|\b[A-Za-z]:\\[^\s'\"]+")
"""Addresses, and paths that begin at a root, at home or here; neither `yes/no` nor `owner/name`."""


@dataclass(frozen=True)
class Secrets:
    """What nobody else should read."""

    texts: tuple[str, ...] = ()
    """Wherever they stand in a text, the longest first."""
    base: str | None = None
    """The name on the hub of the model that it all began with, which is no secret."""

    def redact(self, text: str) -> str:
        """The text without them, and without all that looks like a path or an address."""
        for secret in self.texts:
            text = text.replace(secret, HIDDEN)
        return _PLACE.sub(HIDDEN, text)

    def redact_all(self, value: object, *, name: str = "") -> object:
        """Options, nested as they are, in plain values that tell no secret; `name` is the option's."""
        if isinstance(value, Mapping):
            return {str(key): self.redact_all(one, name=str(key)) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.redact_all(one) for one in value]
        if isinstance(value, Path) or (name in ADDRESSES and value):
            return HIDDEN
        if not isinstance(value, str):
            return value
        return Path(value).name if name in MODELS and value != self.base else self.redact(value)


def secrets_of(run: RunFiles) -> Secrets:
    """The paths and addresses in a run's options, and every image that it asked about or was tested on."""
    images = {row.image for policies in run.predictions.values() for rows in policies.values() for row in rows}
    images |= {path for part in run.rounds for question in part.questions for path in question.images}
    texts = images | {Path(one).name for one in images} | _places(run.options)
    base = base_of(run)
    # A folder that is called images is no secret, and the word stands in many a sentence.
    told = {text for text in texts if text != base and any(sign in text for sign in "/\\.")}
    return Secrets(tuple(sorted(told, key=lambda text: (-len(text), text))), base)


def base_of(run: RunFiles) -> str | None:
    """The name on the hub of the model that the run began with; None where that was a folder or built from nothing."""
    named = content_id("hub", run.options.model)
    return run.options.model if any(named in one.inputs.values() for one in run.manifests.values()) else None


def _places(options: Options) -> set[str]:
    """Every path and address in the options, those of models among them."""
    found: set[str] = set()
    for name in type(options).model_fields:
        value = getattr(options, name)
        several = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
        for one in several:
            if isinstance(one, Options):
                found |= _places(one)
            elif isinstance(one, Path):
                found |= {str(one), str(one.absolute())}
            elif name in ADDRESSES:
                found |= {str(one), urlsplit(str(one)).hostname or ""}
            elif name in MODELS and isinstance(one, str) and Path(one).name != one:
                found.add(one)
    return found
