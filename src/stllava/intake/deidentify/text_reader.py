"""Reads text in pixels: where it stands, whether lying, upright, mirrored, cut by the border, or as large as the picture.

Reads and writes nothing. What is read is used here and forgotten: a `TextRegion` says where text is, not what it says.

A first look costs milliseconds and decides where the reader is needed: nowhere that is flat. What it is given to read are the
rectangles round everything else, at the picture's own scale, at twice that, reduced until the largest letters are of a
size to be read, and with contrast levelled. A letter that the border cuts is whole again in a mirror beyond the border.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stllava.intake.deidentify.ocr_engine import detect, read

Pixels = NDArray[np.uint8]
Map = NDArray[np.bool_]
"""[H, W], true where something is."""
Corners = NDArray[np.float64]
"""[4, 2], x and y, from the top left on."""
Area = tuple[int, int, int, int]
"""Top, left, bottom and right."""

TILE, OVERLAP = 960, 192
"""Side of the squares that the reader sees, and what neighbours share, in pixels after scaling."""
COARSE, COARSEST = 960, 120
"""Longer sides, in pixels, to which larger pictures are reduced once, and down to which they are halved again."""
RIM, STRIP = 32, 64
"""Pixels of the mirror beyond a border that something reaches, and of the picture that are read together with it."""
CELL = 32
"""Side of the squares, in pixels, that are looked at or not."""
REACH, NOISE, LEVEL = 16, 6.0, 45
"""How far contrast is levelled around a pixel, the deviation in grey levels below which nothing is amplified further, and the
deviation that all get."""
FLAT = 5
"""Grey levels that the pixels around one must span for anything to stand there."""
LEGIBLE = 0.5
"""Least confidence with which letters must be read for a place to count as text; lower masks more, letters and anatomy.
What looks like nothing but a line of text counts as text whether it can be read or not."""
LARGE = 48.0
"""Pixels, or an eighth of the picture where that is more, beyond which one or two letters may be anatomy."""
SURE = 0.9
"""Confidence beyond which two large letters are text though heads and lungs have their shape, or one of them is a digit."""
REDUCED = 0.8
"""Least confidence in a reduced picture, in which anatomy has the size of letters."""
SHAPED = 0.85
"""How much, of 1, one large letter must look like text."""
LINE = 0.7
"""How much what is twice as long as high must look like text, of 1, to count as text whether it can be read or not."""

_ROUND = frozenset("OQDCUoqdcu0")
_MARKER = re.compile(r"L|R|LT|RT|PA|AP|LAT|LL|RL|RAO|LAO|RPO|LPO|MLO|CC|[AHFPSI]{1,2}|\d{1,2}(\.\d)?( ?[CM]M)?|[CM]M")


@dataclass(frozen=True)
class TextRegion:
    """Where text stands."""

    corners: Corners
    """In pixels of the picture, those beyond the border too."""
    marker: bool
    """Whether it reads as a side or view marker or a scale number."""


@dataclass(frozen=True)
class View:
    """The picture in one guise."""

    pixels: Pixels
    """[H, W, 3]."""
    scale: float
    """At which it is read."""
    areas: list[Area]
    """What of it is read."""
    rim: int = 0
    """Pixels that lie beyond each border."""
    halved: bool = False
    """Whether it is so small that anatomy has the size of letters."""

    def tiles(self) -> Iterator[tuple[NDArray[np.float64], Pixels]]:
        """Squares that cover the areas, scaled, and overlap, with the x and y in the picture of their top left corners."""
        for top, left, bottom, right in self.areas:
            scaled = _scaled(np.ascontiguousarray(self.pixels[top:bottom, left:right]), self.scale)
            for low, high in _spans(scaled.shape[0]):
                for start, end in _spans(scaled.shape[1]):
                    corner = np.array([left - self.rim + start / self.scale, top - self.rim + low / self.scale])
                    yield corner, scaled[low:high, start:end]


def standing_out(pixels: Pixels) -> Map:
    """Where the picture [H, W] or [H, W, 3] is not flat: text stands nowhere else."""
    import cv2

    square = np.ones((9, 9), dtype=np.uint8)
    span = np.asarray(cv2.subtract(cv2.dilate(pixels, square), cv2.erode(pixels, square)))
    return (span if span.ndim == 2 else span.max(axis=2)) >= FLAT


def is_marker(text: str) -> bool:
    """Whether a text is a side or view marker or a scale number."""
    return _MARKER.fullmatch(text.strip().upper()) is not None


def read_regions(pixels: Pixels, where: Map, *, enlarge_up_to: int, markers: bool) -> list[TextRegion]:
    """Every place with text that lies, in part at least, where the map says.

    Whether `markers` are told apart from text costs
    reading every line. Pictures whose longer side is up to `enlarge_up_to` are read twice as large as well.
    """
    regions: list[TextRegion] = []
    height, width = where.shape
    for view in _views(pixels, where, enlarge_up_to=enlarge_up_to) if where.any() else ():
        for corner, tile in view.tiles():
            regions += _read(tile, regions, corner, view, shape=(height, width), markers=markers)
    return regions


def _views(pixels: Pixels, where: Map, *, enlarge_up_to: int) -> Iterator[View]:
    """The picture at every scale and in every guise in which it is read, the sharpest first: what it shows is text already."""
    height, width = where.shape
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    finest = 2.0 if max(height, width) <= enlarge_up_to else 1.0
    areas, whole = _rectangles(where), [(0, 0, height, width)]
    for scale in sorted({finest, 1.0}, reverse=True):
        yield View(colour, scale, areas)
    level, lifted = levelled(colour)
    if (dim := where & lifted).any():
        yield View(level, finest, _rectangles(dim))
    if edges := _edges(where):
        yield View(np.pad(colour, ((RIM, RIM), (RIM, RIM), (0, 0)), mode="symmetric"), finest, edges, rim=RIM)
    scale = min(1.0, COARSE / max(height, width))
    if scale < 1:
        yield View(colour, scale, whole)
    # Letters that fill the picture are found only with room round them.
    room = max(height, width) // 8
    roomy = np.pad(colour, ((room, room), (room, room), (0, 0)), mode="edge")
    while max(height, width) * scale >= 2 * COARSEST:
        scale /= 2
        yield View(roomy, scale, [(0, 0, *roomy.shape[:2])], rim=room, halved=True)


def _rectangles(where: Map) -> list[Area]:
    """What must be looked at with some room round it."""
    import cv2

    height, width = where.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    cells = np.zeros((rows * CELL, columns * CELL), dtype=np.bool_)
    cells[:height, :width] = where
    taken = np.asarray(cells.reshape(rows, CELL, columns, CELL).any(axis=(1, 3)), dtype=np.uint8)
    _, _, boxes, _ = cv2.connectedComponentsWithStats(cv2.dilate(taken, np.ones((3, 3), dtype=np.uint8)))
    boxes_left: list[Area] = [(y, x, y + h, x + w) for x, y, w, h, _ in boxes[1:].tolist()]
    merged: list[Area] = []
    while boxes_left:
        top, left, bottom, right = boxes_left.pop()
        meets = next((box for box in merged if top < box[2] and box[0] < bottom and left < box[3] and box[1] < right), None)
        if meets is None:
            merged.append((top, left, bottom, right))
            continue
        merged.remove(meets)
        boxes_left.append((min(top, meets[0]), min(left, meets[1]), max(bottom, meets[2]), max(right, meets[3])))
    if sum((box[2] - box[0]) * (box[3] - box[1]) for box in merged) > 0.8 * rows * columns:
        return [(0, 0, height, width)]
    return [(t * CELL, x * CELL, min(b * CELL, height), min(r * CELL, width)) for t, x, b, r in sorted(merged)]


def _edges(where: Map) -> list[Area]:
    """Strips along the border, in the rimmed picture, where something reaches it."""
    height, width = where.shape
    strips: list[Area] = []
    deep = RIM + STRIP
    for side, reached in (
        ("top", where[:2].any(axis=0)),
        ("bottom", where[-2:].any(axis=0)),
        ("left", where[:, :2].any(axis=1)),
        ("right", where[:, -2:].any(axis=1)),
    ):
        if not reached.any():
            continue
        at = np.flatnonzero(reached)
        low, high = max(0, int(at[0]) - STRIP), int(at[-1]) + 1 + STRIP + 2 * RIM
        strips.append(
            {
                "top": (0, low, deep, min(high, width + 2 * RIM)),
                "bottom": (height + 2 * RIM - deep, low, height + 2 * RIM, min(high, width + 2 * RIM)),
                "left": (low, 0, min(high, height + 2 * RIM), deep),
                "right": (low, width + 2 * RIM - deep, min(high, height + 2 * RIM), width + 2 * RIM),
            }[side]
        )
    return strips


def levelled(colour: Pixels) -> tuple[Pixels, Map]:
    """The picture with the same mean and contrast everywhere, and where that makes its contrast twice as large or larger.

    Each value is the distance from the mean around it, in local deviations.
    """
    import cv2

    grey = bool((colour[:, :, :1] == colour).all())
    values = (colour[:, :, 0] if grey else colour).astype(np.float32)
    side, edge = (2 * REACH + 1, 2 * REACH + 1), cv2.BORDER_REPLICATE
    mean = cv2.boxFilter(values, cv2.CV_32F, side, borderType=edge)
    square = cv2.boxFilter(values * values, cv2.CV_32F, side, borderType=edge)
    deviation = np.sqrt(np.maximum(square - mean * mean, 0) + np.float32(NOISE**2))
    level = np.clip(128 + LEVEL * (values - mean) / deviation, 0, 255).astype(np.uint8)
    if grey:
        return np.repeat(level[:, :, None], 3, axis=2), np.asarray(deviation <= LEVEL / 2)
    return level, np.asarray((deviation <= LEVEL / 2).any(axis=2))


def _scaled(colour: Pixels, scale: float) -> Pixels:
    if scale == 1:
        return colour
    if scale == 2:
        import cv2

        return np.asarray(cv2.resize(colour, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))
    height, width = (max(1, round(side * scale)) for side in colour.shape[:2])
    return np.asarray(Image.fromarray(colour).resize((width, height), Image.Resampling.BICUBIC))


def _spans(side: int) -> list[tuple[int, int]]:
    # A little more than a tile stays whole: an extra square would cost more than the longer side.
    if side <= TILE + OVERLAP:
        return [(0, side)]
    starts = [*range(0, side - TILE, TILE - OVERLAP), side - TILE]
    return [(start, start + TILE) for start in starts]


def _read(
    tile: Pixels,
    known: list[TextRegion],
    corner: NDArray[np.float64],
    view: View,
    *,
    shape: tuple[int, int],
    markers: bool,
) -> list[TextRegion]:
    """The places with text in one tile; what lies within known text or is a plain line need not be read to be text."""
    picture = np.ascontiguousarray(tile[:, :, ::-1])
    boxes, scores = detect(picture)
    shifted = [box.astype(np.float64) / view.scale + corner for box in boxes]
    largest = max(LARGE, min(shape) / 8)
    lines = [_is_line(at, score, largest=largest) or _is_cut(at, shape) for at, score in zip(shifted, scores, strict=True)]
    plain = [_inside(at, known) or (line and not markers) for at, line in zip(shifted, lines, strict=True)]
    regions = [TextRegion(at, marker=False) for at, sure in zip(shifted, plain, strict=True) if sure]
    least_confidence = max(LEGIBLE, REDUCED) if view.halved else LEGIBLE
    doubtful = [number for number, sure in enumerate(plain) if not sure]
    unread: list[int] = []
    for number, (text, confidence) in zip(doubtful, read(picture, boxes, doubtful), strict=True):
        if _is_text(
            shifted[number], text, confidence, score=scores[number], least_confidence=least_confidence, largest=largest
        ):
            regions.append(TextRegion(shifted[number], is_marker(text)))
        elif lines[number]:
            regions.append(TextRegion(shifted[number], marker=False))
        elif _longer(shifted[number]) > 1.3:
            unread.append(number)
    for number, (text, confidence) in zip(unread, read(picture, boxes, unread, mirrored=True), strict=True):
        # A stroke or two are read out of anything that is turned about.
        if _letters(text) > 2 and confidence >= least_confidence:
            regions.append(TextRegion(shifted[number], marker=False))
    return regions


def _letters(text: str) -> int:
    return sum(character.isalnum() for character in text)


def _is_text(corners: Corners, text: str, confidence: float, *, score: float, least_confidence: float, largest: float) -> bool:
    """Whether a place read so is text: one letter or two that fill a good part of the picture are often anatomy."""
    letters = [character for character in text if character.isalnum()]
    if not letters or confidence < least_confidence:
        return False
    if len(letters) > 2 or float(np.ptp(corners, axis=0).min()) <= largest:
        return True
    latin = all(letter.isascii() and letter.isalpha() for letter in letters)
    if not latin or _ROUND.issuperset(letters):
        return len(letters) == 2 and "".join(letters).isascii() and confidence >= SURE
    return len(letters) == 2 or score >= SHAPED


def _is_line(corners: Corners, score: float, *, largest: float) -> bool:
    """Whether a place looks so much like a line of text that it counts as one, read or not, in whatever alphabet."""
    return score >= LINE and _longer(corners) >= 2 and min(_sides(corners)) <= largest


def _sides(corners: Corners) -> tuple[float, float]:
    """Width and height of a place, which may stand askew."""
    return float(np.linalg.norm(corners[0] - corners[1])), float(np.linalg.norm(corners[0] - corners[3]))


def _longer(corners: Corners) -> float:
    """How many times longer than high a place is."""
    short, long = sorted(_sides(corners))
    return long / max(short, 1.0)


def _is_cut(corners: Corners, shape: tuple[int, int]) -> bool:
    """Whether a place looks like a line that the border cuts: letters that are not whole cannot be read."""
    size = np.ptp(corners, axis=0)
    over = corners.min() <= 3 or bool((corners.max(axis=0) >= np.array(shape)[::-1] - 4).any())
    return over and float(size.max()) > 1.5 * float(size.min())


def _inside(corners: Corners, known: list[TextRegion]) -> bool:
    """Whether a place lies, but for a rest, within text that was read and is no marker."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    area = float(np.prod(high - low))
    for region in known:
        common = np.minimum(high, region.corners.max(axis=0)) - np.maximum(low, region.corners.min(axis=0))
        if not region.marker and (common > 0).all() and float(np.prod(common)) >= 0.8 * area:
            return True
    return False
