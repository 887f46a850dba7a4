"""What a source of data is, and which there are: each is one file, with its options, its reader and its inputs.

    source = source_of(options)
    source.check(options)
    data = source.read(options, seed=0, max_bad=0.05, begin=begin)

A source is known by the class of its options: its file ends with `register`, and `__init__` imports that file. Nothing
outside this folder asks what kind a source is. The options live here and not in `config`, because one thought should be one
file; so what needs them all, `stllava.recipe`, stands above `data`, while `config` stays below it.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from stllava.config import Options
from stllava.data.overlap import ImageFingerprint, TrainingItem, TrainingRecord, training_items
from stllava.data.phantom.truth import Truth
from stllava.errors import StllavaError
from stllava.records import Conversation, Image, Sample

TAKEN = frozenset({"conversations", "captions", "images", "validation", "references", "truths", "overlaps", "fingerprints"})
"""Names of a data set's files, which no benchmark can have."""
_NAMED = 5


class SourceOptions(Options):
    """Base of every source's options; `kind` says which source it is."""

    synthetic: ClassVar[bool] = False
    """Whether its images are drawn from truths that are known."""
    kind: str
    """Which source it is."""

    @property
    def all_labelled(self) -> bool:
        """Whether every training image is labelled, so that none is left to ask about."""
        return getattr(self, "labelled", None) == "all"


@dataclass
class SourceData:
    """A source's data set in memory, with what was left out of it and why."""

    fingerprints: dict[str, ImageFingerprint]
    """What tells every usable image from others, by path."""
    conversations: list[Conversation]
    """What sft learns from."""
    images: list[Image]
    """What the policy asks itself about."""
    validation: list[Sample]
    """What chooses the best round."""
    benchmarks: dict[str, list[Sample]]
    """What measures it, by name."""
    captions: list[Conversation] | None = None
    """What an alignment stage learns from; None for a source that never has any."""
    candidates: dict[str, list[str]] = field(default_factory=dict)
    """Answers that the published open accuracy of a benchmark chooses from: those of its open training questions."""
    references: list[Sample] | None = None
    """What the reference expert may look at."""
    truths: list[Truth] | None = None
    """What is true of the images to ask about, where they are drawn."""
    read: int = 0
    """Rows and unlabelled images that were read."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Those of them that were left out, by cause."""
    notes: list[str] = field(default_factory=list)
    """Sentences for the reader of the results."""
    overlap_reason: str = "It was allowed by allow_overlap."
    """Why a benchmark may share images with the training side."""

    def learned(self) -> dict[str, list[TrainingItem]]:
        """What weights or verdicts depend on, by the part of the data it is in."""
        parts: dict[str, Sequence[TrainingRecord]] = {
            "labelled conversations": self.conversations,
            "captions": self.captions or (),
            "images to ask about": self.images,
            "references": self.references or (),
        }
        return {name: [item for record in records for item in training_items(record)] for name, records in parts.items()}


S = TypeVar("S", bound=SourceOptions)
S_contra = TypeVar("S_contra", bound=SourceOptions, contravariant=True)


class Source(Protocol[S_contra]):
    """One place that data comes from."""

    def check(self, options: S_contra) -> None:
        """Refuse a path that leads nowhere by the key that names it, before anything is read."""

    def inputs(self, options: S_contra) -> dict[str, str]:
        """What decides the data set beside its options, by name: hashes of files, names of images."""
        ...

    def read(self, options: S_contra, *, seed: int, max_bad: float, begin: Callable[[], Path]) -> SourceData:
        """Read and check everything, decoding every image once.

        A source that has no image files of its own calls `begin` when nothing is left to refuse but images: it gives the
        folder that `image_root` names, to write them into.
        """
        ...

    def image_root(self, options: S_contra, to: Path) -> Path:
        """The folder that image paths are relative to, of a data set in the folder `to`."""
        ...

    def describe(self, options: S_contra) -> str:
        """A sentence for the model card: what the data is and whose."""
        ...


SOURCES: dict[type[SourceOptions], Source[Any]] = {}
"""Every source by the class of its options."""


def register(options: type[S], source: Source[S]) -> None:
    """Make a source known."""
    SOURCES[options] = source


def source_of(options: S) -> Source[S]:
    """The source that these options are of."""
    return SOURCES[type(options)]


def require_folder(key: str, path: Path) -> None:
    """Refuse a path, given as `data.<key>`, that is no folder."""
    if not path.is_dir():
        raise _astray(key, path, what="is a file" if path.exists() else "does not exist", expected="a folder")


def require_file(key: str, path: Path | None) -> None:
    """Refuse a path, given as `data.<key>`, that is no file; None is none to check."""
    if path is not None and not path.is_file():
        inside = sorted(entry.name for entry in path.iterdir())[:_NAMED] if path.is_dir() else []
        what = f"is a folder (in it: {', '.join(inside) or 'nothing'})" if path.is_dir() else "does not exist"
        raise _astray(key, path, what=what, expected="a file")


def _astray(key: str, path: Path, *, what: str, expected: str) -> StllavaError:
    looked = path.absolute().parent
    there = sorted(entry.name for entry in looked.iterdir()) if looked.is_dir() else None
    near = difflib.get_close_matches(path.name, there or (), n=1)
    where = "" if path.is_absolute() else f" (looked for in {looked})"
    remedy = "Check data." + key + (f": did you mean {near[0]!r}?" if near and near[0] != path.name else ".")
    return StllavaError(
        f"data.{key} names {path}, which {what}{where}",
        expected=expected,
        remedy=remedy if there is not None else f"{remedy} There is no folder {looked}.",
    )
