"""What is read of a model: configuration, weights, tokenizer and processors, from a transformers folder or a hub name.

Python code that comes with a model is never run, whatever anybody answers: a model that needs some is refused. Writes
nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)

from stllava.errors import StllavaError

# Where a part of a model (the text_config of a LLaVA) names code of its own, transformers has no argument to hand the refusal
# through and asks on the terminal; with no time to answer in, it refuses there too.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
ASKS_FOR_CODE = "trust_remote_code"
"""The argument that transformers' refusals name."""


@contextmanager
def reading(path: Path | str, *, expected: str, remedy: str = "Check the name or folder.") -> Iterator[None]:
    """Say of whatever transformers raises over a folder or hub name that it does not load, and why."""
    try:
        yield
    except (StllavaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if ASKS_FOR_CODE in str(error):
            raise _needs_code(path) from error
        raise StllavaError(f"{path} does not load: {_brief(error)}", expected=expected, remedy=remedy) from error


def _needs_code(path: Path | str) -> StllavaError:
    return StllavaError(
        f"{path} needs Python code that comes with it (auto_map in its configuration), and such code is never run here",
        expected="a model that transformers has a class for",
        remedy="Take a version of the model for transformers itself (their names often end in -hf), or a newer transformers.",
    )


def _brief(error: Exception) -> str:
    """The error in one line; a KeyError, say, gives a name alone, so its class is told too."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: {text}"


def read_config(path: Path | str) -> PreTrainedConfig:
    """The configuration."""
    return cast(PreTrainedConfig, AutoConfig.from_pretrained(str(path), trust_remote_code=False))


def read_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer."""
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(path), trust_remote_code=False))


def read_image_processor(path: Path | str) -> object:
    """The image processor that needs no torchvision."""
    return AutoImageProcessor.from_pretrained(str(path), backend="pil", trust_remote_code=False)


def read_auto_processor(path: Path | str) -> object:
    """What transformers takes for the processor, which is a tokenizer where the folder has no more."""
    return AutoProcessor.from_pretrained(str(path), backend="pil", trust_remote_code=False)
