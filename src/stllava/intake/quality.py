"""Finds pictures that are no use: blank, near-constant, tiny, huge, and copies of earlier ones, exact or nearly.

Reads pixels. `CopyIndex` keeps 144 bytes a picture in files of its folder, so that a million pictures take little memory:
copies are found by sorting one column at a time, never by comparing all pairs.
"""

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from stllava.config import IntakeOptions
from stllava.data.likeness import NEAR

Indices = npt.NDArray[np.int64]

_DIGEST, _PICTURE = 16, 128
_PAIRS = 1 << 15
_SET = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


def fault(pixels: npt.NDArray[np.uint8], options: IntakeOptions) -> str | None:
    """Why a picture [H, W] or [H, W, 3] is no use: tiny, huge, blank, near-constant; None when nothing is wrong with it."""
    height, width = pixels.shape[:2]
    if min(height, width) < options.smallest:
        return "tiny"
    if height * width > options.largest:
        return "huge"
    # Pillow counts bytes as they are, numpy turns each into a word first.
    counts = np.array(Image.fromarray(pixels).histogram()).reshape(-1, 256)
    spans = [_span(levels) for levels in counts]
    if not any(whole for whole, _ in spans):
        return "blank"
    return "near-constant" if max(middle for _, middle in spans) < options.contrast else None


def _span(counts: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Grey levels from the darkest to the brightest pixel, and between those that 0.5 % are below and above.

    `counts` is how many pixels have each level, [256].
    """
    pixels = int(counts.sum())
    share = np.cumsum(counts) / pixels
    levels = np.searchsorted(share, [0.0, 0.005, 0.995, 1.0 - 0.5 / pixels], side="right")
    low, lower, upper, high = (int(level) for level in levels)
    return high - low, upper - lower


def pixel_digest(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Sixteen bytes that are the same for the same shape and pixels only."""
    return blake2b(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes(), digest_size=_DIGEST).digest()


class CopyIndex:
    """What pictures look like, in files that grow by 144 bytes a picture; use as a context manager while adding."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = folder / "digests.bin", folder / "pictures.bin"
        self._files = tuple(path.open("wb") for path in self._paths)
        self._plain: list[int] = []
        self.count = 0

    def __enter__(self) -> "CopyIndex":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()

    def add(self, digest: bytes, picture: int | None) -> None:
        """Add the next picture: its `pixel_digest` and `picture_hash`."""
        digests, pictures = self._files
        digests.write(digest)
        pictures.write((picture or 0).to_bytes(_PICTURE))
        if picture is None:
            self._plain.append(self.count)
        self.count += 1

    def copies(self) -> Indices:
        """Of every picture the index of the first one with the same pixels, which may be its own."""
        if not self.count:
            return np.arange(0)
        digests = np.fromfile(self._paths[0], dtype=f"V{_DIGEST}").view(">u8").reshape(-1, 2)
        order = np.lexsort((digests[:, 1], digests[:, 0]))
        ordered = digests[order]
        fresh = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
        first = np.empty(self.count, dtype=np.int64)
        # lexsort is stable, so the head of each run is the earliest picture of it.
        first[order] = order[np.maximum.accumulate(np.where(fresh, np.arange(self.count), 0))]
        return first

    def near_copies(self, *, distance: int = NEAR) -> Indices:
        """Of every picture the index of the first other one before it within `distance` bits, -1 where there is none.

        Plain pictures are like none. Every pair is found: of `distance` + 1 bands of bits, one at least is the same. A
        band takes bits from everywhere, since the lowest frequencies of one body region have few different signs.
        """
        nearest = np.full(self.count, self.count, dtype=np.int64)
        if not self.count:
            return nearest
        pictures = np.memmap(self._paths[1], dtype=np.uint8, mode="r", shape=(self.count, _PICTURE))
        textured = np.ones(self.count, dtype=bool)
        textured[self._plain] = False
        indices = np.flatnonzero(textured)
        for band in range(distance + 1):
            keys = _band(pictures, indices, range(band, 8 * _PICTURE, distance + 1))
            for left, right in _pairs(keys):
                low, high = np.minimum(indices[left], indices[right]), np.maximum(indices[left], indices[right])
                closer = low < nearest[high]
                low, high = low[closer], high[closer]
                near = _SET[pictures[low] ^ pictures[high]].sum(axis=1, dtype=np.int64) <= distance
                np.minimum.at(nearest, high[near], low[near])
        nearest[nearest == self.count] = -1
        return nearest


def _band(pictures: npt.NDArray[np.uint8], indices: Indices, bits: range) -> npt.NDArray[np.uint64]:
    """Some bits of every picture at `indices` as one number each; of more than 64 bits the first 64 count."""
    keys = np.zeros(len(indices), dtype=np.uint64)
    for bit in bits[:64]:
        keys = keys << np.uint64(1) | (pictures[indices, bit // 8] >> (7 - bit % 8) & 1).astype(np.uint64)
    return keys


def _pairs(keys: npt.NDArray[np.uint64]) -> Iterator[tuple[Indices, Indices]]:
    """Indices of every two equal keys, in pieces."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.arange(len(keys))
    step = 1
    # In sorted keys, two that are equal `step` apart were equal `step` - 1 apart, so fewer are left each time.
    while (starts := starts[starts + step < len(keys)]).size:
        starts = starts[ordered[starts] == ordered[starts + step]]
        for begin in range(0, len(starts), _PAIRS):
            piece = starts[begin : begin + _PAIRS]
            yield order[piece], order[piece + step]
        step += 1
