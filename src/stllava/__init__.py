"""stllava: a general vision-language model becomes a medical one by asking, answering, being judged and learning.

The Python API has the command line's nouns and verbs: `stllava.ask(AskConfig(...), policy=..., ...)` is `stllava ask`.
Names load on first use, so that `import stllava` is quick and needs no torch.
"""

from importlib import import_module
from importlib.metadata import version

__version__ = version("stllava")

_HOME = {
    "sft": "stllava.stages.sft",
    "ask": "stllava.stages.ask",
    "answer": "stllava.stages.answer",
    "judge": "stllava.stages.judge",
    "pair": "stllava.stages.pair",
    "dpo": "stllava.stages.dpo",
    "evaluate": "stllava.stages.evaluate",
    "predict": "stllava.stages.predict",
    "export": "stllava.export",
    "run": "stllava.pipeline",
    "StllavaError": "stllava.errors",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'stllava' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
