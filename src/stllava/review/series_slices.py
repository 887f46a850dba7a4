"""What an imported set has of a picture beside itself: the other slices of its series, and its 16-bit pixels.

Reads `images.jsonl` of the image root, twice and line by line: what is kept are the series of the pictures asked about.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stllava.data.image_set import DeepImage, Imported, is_imported
from stllava.store import stream_records


def series_slices(root: Path, paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Of each picture that is a slice, the paths of its series in their order, itself among them.

    Pictures that are no slice, or of which no other slice is in the set, are not in it; nor is any where the image root is no
    imported set.

    Args:
        root: The image root.
        paths: The pictures that are asked about, relative to it.
    """
    if not is_imported(root):
        return {}
    rows, asked = stream_records(root, "images", Imported), set(paths)
    series_of = {row.path: row.series for row in rows if row.path in asked and row.frame is not None}
    wanted = set(series_of.values())
    slices: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        if row.series in wanted and row.frame is not None:
            slices.setdefault(row.series, []).append((row.frame, row.path))
    ordered = {series: tuple(path for _, path in sorted(found)) for series, found in slices.items() if len(found) > 1}
    return {path: ordered[series] for path, series in series_of.items() if series in ordered}


def deep_images(root: Path, paths: Iterable[str]) -> dict[str, DeepImage]:
    """The 16-bit pixels of each picture that has some, by its path; none where the image root is no imported set.

    Args:
        root: The image root.
        paths: The pictures that may be shown, relative to it.
    """
    if not is_imported(root):
        return {}
    wanted = set(paths)
    return {row.path: row.deep for row in stream_records(root, "images", Imported) if row.deep and row.path in wanted}


def shown_images(images: Sequence[str], series: Mapping[str, Sequence[str]]) -> tuple[Sequence[str], int | None]:
    """What a reader may look at: a task's images, or the series that its only one is of, and which of that is asked about."""
    if len(images) == 1 and (slices := series.get(images[0])) is not None:
        return slices, slices.index(images[0])
    return images, None
