"""What is published of each benchmark, and whether the files at hand are it.

Counts: VQA-RAD and SLAKE as LLaVA-Med and STLLaVA-Med report them; the hub's copies from their cards (vqa-rad 1,793 + 451,
path-vqa 19,654 + 6,259 + 6,719; the kinds of vqa-rad's test split counted in the original); PathVQA 32,795 in all, its
test split as `simwit/medmoe-path-vqa` splits it; OmniMedVQA's open part 88,996. The content of VQA-RAD is pinned: its
train.json and test.json lay here when this was written. No other content could be verified.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stllava.errors import StllavaError
from stllava.records import Sample

_FOLDERS = ("VQA_RAD Image Folder/", "images/", "imgs/", "figures/", "Images/")


class Published(NamedTuple):
    """What is known of a split; a count or hash that is not known is not compared."""

    counts: dict[str, int]
    """Questions by kind, or under `all`."""
    content: str = ""
    """`content_hash` of the split."""


_RAD_TRAIN, _RAD_TEST = {"open": 770, "closed": 1027}, {"open": 179, "closed": 272}
PUBLISHED: dict[tuple[str, str], dict[str, Published]] = {
    ("vqa-rad", "json"): {
        "train": Published(_RAD_TRAIN, "fd3528a9eb1301fa9ee6c5ae065770d0028f9f3d037cc506f841cec44193ff0c"),
        "test": Published(_RAD_TEST, "d9c11c395b37cb0533364cce1a134f5aa30d60e5fa9da541e2cb73293d9f37bd"),
    },
    ("vqa-rad", "public"): {"train": Published(_RAD_TRAIN), "test": Published(_RAD_TEST)},
    ("vqa-rad", "hub"): {"train": Published({"all": 1793}), "test": Published({"open": 200, "closed": 251})},
    ("slake", "en"): {"test": Published({"open": 645, "closed": 416})},
    ("pathvqa", "qas"): {
        "train": Published({"all": 19_755}),
        "validation": Published({"all": 6_279}),
        "test": Published({"open": 3370, "closed": 3391}),
    },
    ("pathvqa", "hub"): {
        "train": Published({"all": 19_654}),
        "validation": Published({"all": 6_259}),
        "test": Published({"all": 6_719}),
    },
    ("omnimedvqa", "json"): {"open-access": Published({"all": 88_996})},
}
"""By benchmark and layout, then by split."""


def content_hash(samples: Sequence[Sample]) -> str:
    """SHA-256 of what is asked and answered: no order, id, label, blank or image folder of a layout changes it."""
    rows = sorted(
        json.dumps([_image(row.image), _words(row.question), sorted(map(_words, row.targets)), row.kind], ensure_ascii=False)
        for row in samples
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def compare_published(
    name: str, layout: str, splits: Mapping[str, Sequence[Sample]], *, allow_changed: bool
) -> tuple[str, ...]:
    """Sentences on what was compared and how; a split that differs is refused unless `allow_changed`."""
    known = PUBLISHED.get((name, layout), {})
    same: dict[str, list[str]] = {"content and counts": [], "counts": []}
    notes = []
    for split, rows in splits.items():
        if split not in known:
            continue
        difference = _difference(known[split], rows)
        if not difference:
            same["content and counts" if known[split].content else "counts"].append(split)
            continue
        found, expected = difference
        if not allow_changed:
            raise StllavaError(
                f"the {split} split of {name} is not the published one: {found}",
                expected=expected,
                remedy="Get the published files, or set allow_changed: results then say that the split was changed.",
            )
        notes.append(f"The {split} split of {name} is not the published one ({found}; published: {expected}).")
    for what, names in same.items():
        if names:
            notes.append(f"{name}: {what} of {', '.join(names)} equal the published ones.")
    rest = [split for split in splits if split not in known]
    if rest:
        notes.append(f"{name}: nothing published is known to compare {', '.join(rest)} with.")
    return tuple(notes)


def _difference(published: Published, rows: Sequence[Sample]) -> tuple[str, str] | None:
    """What was found and what was expected, where they differ."""
    counts = Counter[str](row.kind for row in rows)
    counts["all"] = len(rows)
    found = {name: counts[name] for name in published.counts}
    if found != published.counts:
        return _questions(found), _questions(published.counts)
    if published.content and content_hash(rows) != published.content:
        return "the same counts, but other content (which rows cannot be told)", f"content {published.content[:16]}…"
    return None


def _questions(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{count} {name if name != 'all' else ''}".strip() for name, count in counts.items()) + " questions"


def _image(path: str) -> str:
    return next((path.removeprefix(folder) for folder in _FOLDERS if path.startswith(folder)), path)


def _words(text: str) -> str:
    return " ".join(text.split())
