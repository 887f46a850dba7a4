"""Reads a benchmark by its name: finds its layout, compares it with what is published, leaves out unusable rows.

    from stllava.data.benchmarks import read_benchmark
    slake = read_benchmark("slake", Path("Slake1.0"))

Decodes every image of the splits that are taken, once; writes nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from stllava.data.benchmarks.multiple_choice import find_omnimedvqa, find_pmc_vqa
from stllava.data.benchmarks.own import SUFFIXES, find_own
from stllava.data.benchmarks.pathvqa import find_pathvqa
from stllava.data.benchmarks.published import compare_published, content_hash
from stllava.data.benchmarks.rows import Found
from stllava.data.benchmarks.slake import Language, find_slake
from stllava.data.benchmarks.vqa_rad import find_vqa_rad
from stllava.data.images import bad_images
from stllava.errors import StllavaError
from stllava.records import Sample

NAMES = ("vqa-rad", "slake", "pathvqa", "pmc-vqa", "omnimedvqa")
"""The benchmarks that are known; any other name is that of your own file."""

MAX_BAD = 0.05
"""Share of unusable rows above which a split is refused."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark in our terms."""

    name: str
    root: Path
    """What image paths are relative to."""
    splits: dict[str, tuple[Sample, ...]]
    """Its usable questions."""
    hashes: dict[str, str]
    """`content_hash` of every split, unusable questions included."""
    candidates: tuple[str, ...]
    """Distinct answers of the open training questions, sorted: what the published open accuracy chooses from."""
    notes: tuple[str, ...]
    """Sentences for the reader of the results."""
    files: tuple[Path, ...]
    """The files of questions."""
    dropped: dict[str, int]
    """Questions left out, by cause."""
    packed: bool = False
    """Whether the images are still inside `files`: no path leads to one before `import_benchmark` unpacks them."""


def read_benchmark(
    name: str,
    folder: Path,
    *,
    language: Language = "en",
    allow_changed: bool = False,
    splits: Sequence[str] | None = None,
) -> Benchmark:
    """The benchmark in a folder, or in your own table or JSON file; `language` is SLAKE's.

    Takes all splits there, or those named. One that is not the published one is refused unless `allow_changed`.
    """
    found = _find(name, folder, language=language)
    wanted = tuple(splits or (split for split in found.splits if split not in found.aside))
    lacking = [split for split in wanted if split not in found.splits]
    if lacking:
        raise StllavaError(
            f"{name} in {folder} has no split {', '.join(lacking)}",
            expected=f"some of {', '.join(found.splits)}",
            remedy="Name other splits, or add their files.",
        )
    taken = {split: found.splits[split] for split in wanted}
    root = folder if folder.is_dir() else folder.parent
    compared = compare_published(name, found.layout, taken, allow_changed=allow_changed)
    usable = usable_rows(name, taken, root=None if found.packed else root)
    train = found.splits.get("train", ())
    return Benchmark(
        name=name,
        root=root,
        splits=usable.splits,
        hashes={split: content_hash(rows) for split, rows in taken.items()},
        candidates=tuple(sorted({target for row in train if row.kind == "open" for target in row.targets})),
        notes=(*found.notes, *compared, *usable.notes),
        files=found.files,
        dropped=dict(usable.dropped),
        packed=found.packed,
    )


class Usable(NamedTuple):
    """What is left of some splits, and what is not."""

    splits: dict[str, tuple[Sample, ...]]
    dropped: Counter[str]
    notes: tuple[str, ...]


def usable_rows(name: str, splits: Mapping[str, Sequence[Sample]], *, root: Path | None) -> Usable:
    """The rows that can be used, and the others counted by cause; too many of these are refused.

    Images are looked at where there is a root. Causes: those of `images.CAUSES`, no image, empty text, and an answer that
    is no choice.
    """
    bad = {} if root is None else bad_images(root, (row.image for rows in splits.values() for row in rows if row.image))
    usable: dict[str, tuple[Sample, ...]] = {}
    dropped: Counter[str] = Counter()
    notes: list[str] = []
    for split, rows in splits.items():
        causes = [_cause(row, bad) for row in rows]
        counts = Counter(cause for cause in causes if cause)
        named = ", ".join(f"{count} × {cause}" for cause, count in sorted(counts.items()))
        unusable = f"{counts.total()} of {len(rows)} questions of the {split} split of {name} cannot be used: {named or 'none'}"
        if counts.total() > MAX_BAD * len(rows) or not rows:
            archives = sorted(path.name for path in root.glob("*.zip")) if root else []
            unpack = f"Unpack {', '.join(archives)} there; else fix" if archives else "Fix"
            raise StllavaError(
                unusable,
                expected=f"some, and at most {MAX_BAD:.0%} of them unusable",
                remedy=f"{unpack} these rows or images below {root or 'the folder'}, or name other splits.",
            )
        usable[split] = tuple(row for row, cause in zip(rows, causes, strict=True) if not cause)
        dropped += counts
        notes += [f"{unusable}."] if counts else []
    return Usable(usable, dropped, tuple(notes))


def _find(name: str, folder: Path, *, language: Language) -> Found:
    if folder.is_file() and folder.suffix.lower() in SUFFIXES and name not in NAMES:
        if not name.replace("-", "").replace("_", "").isalnum():
            raise StllavaError(
                f"a benchmark is named {name!r}", expected="letters, digits, - and _", remedy="Give it another name."
            )
        return find_own(name, folder)
    if name not in NAMES or not folder.is_dir():
        raise StllavaError(
            f"benchmark {name!r} in {folder}{'' if folder.exists() else ', which does not exist'}",
            expected=f"the folder of {', '.join(NAMES)}, or another name and a {' or '.join(SUFFIXES)} file",
            remedy="Check name and path.",
        )
    if name == "slake":
        return find_slake(folder, language)
    finders = {"vqa-rad": find_vqa_rad, "pathvqa": find_pathvqa, "pmc-vqa": find_pmc_vqa, "omnimedvqa": find_omnimedvqa}
    return finders[name](folder)


def _cause(row: Sample, bad: Mapping[str, str]) -> str:
    """Why a row cannot be used; an empty string when it can."""
    if not row.image:
        return "no image"
    if row.image in bad:
        return bad[row.image]
    if not row.question or not any(row.targets):
        return "empty text"
    return "answer is no choice" if row.choices and not set(row.targets) <= set(row.choices) else ""
