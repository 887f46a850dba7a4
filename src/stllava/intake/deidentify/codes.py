"""Finds codes that hold text: QR, Data Matrix, Aztec, PDF417 and the usual bar codes.

Reads and writes nothing. The decoder is `zxing-cpp` (of the extra `ocr`). A code is found when it can be decoded; with a
wrong check sum, where it is drawn in two levels, since the decoder sees such codes in noise; and, perhaps legible to another
decoder, when a place has the pattern of a code: dense, sharp, of two levels only. What codes say is used nowhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stllava.errors import StllavaError

Pixels = NDArray[np.uint8]
Map = NDArray[np.bool_]
Spot = tuple[int, int, int, int]
"""Left, top, right and bottom; the latter two are outside."""

WINDOW = 25
"""Side in pixels of the squares whose pattern is judged."""
CONTRAST = 90
"""Grey levels between the lightest and the darkest pixel of a code's squares."""
QUIET = 24
"""White round a piece before it is decoded once more: many labels lack what the rules ask for."""
BLURRED = 0.4
"""Greatest share of a code's pixels whose level is near neither end, for one with a wrong check sum to count: in noise it is
0.46 and more, in codes at most 0.36."""
LEAST, FULL = 14, 0.5
"""Sides in pixels, and share of its rectangle, of a place whose squares all have the pattern, to count without decoding."""


@dataclass(frozen=True)
class _Strictness:
    """How much a square must look like a piece of a code."""

    between: float
    """Greatest share of pixels whose level is near neither end."""
    changes: float
    """Least number of changes from dark to light or back, by pixel, along rows and columns together."""


_PERHAPS, _SURELY = _Strictness(0.22, 0.09), _Strictness(0.14, 0.14)


def find_codes(pixels: Pixels, where: Map) -> list[Spot]:
    """Every place of a picture [H, W] or [H, W, 3] with a code or its pattern in the part where the map has something.

    Raises `StllavaError` without the decoder.
    """
    try:
        import cv2
        import zxingcpp
    except ImportError as error:
        raise StllavaError(
            f"no decoder of bar codes ({error})",
            expected="the extra `ocr`, unless only rules are asked for",
            remedy="Run `pip install 'stllava[ocr]'`, or give --look-for-text rules: what may hold text is then kept back.",
        ) from None
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    if not len(rows):
        return []
    first, start = max(0, int(rows[0]) - WINDOW), max(0, int(columns[0]) - WINDOW)
    part = pixels[first : int(rows[-1]) + 1 + WINDOW, start : int(columns[-1]) + 1 + WINDOW]
    grey = np.ascontiguousarray(part if part.ndim == 2 else cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    pieces = list(_patterns(grey, _PERHAPS))
    read = zxingcpp.read_barcodes(grey, return_errors=True)
    spots = [_grown(grey, _spot(code), pieces) for code in read if code.valid or _is_drawn(grey, _corners(code))]
    for piece in pieces:
        left, top, right, bottom = piece
        framed = cv2.copyMakeBorder(grey[top:bottom, left:right], *(QUIET,) * 4, cv2.BORDER_CONSTANT, value=255)
        twice = cv2.resize(framed, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        plain = list(_plain(grey, piece))
        codes = [code for view in (framed, twice) for code in zxingcpp.read_barcodes(view, return_errors=True)]
        # The white frame itself has the outline of a Data Matrix: one that cannot be read is none here.
        decoded = any(code.valid or code.format != zxingcpp.BarcodeFormat.DataMatrix for code in codes)
        # What lies between two plain parts of a code is code.
        whole = decoded or sum(map(_area, plain)) >= 0.4 * _area(piece)
        spots += [piece] if whole else plain
    height, width = pixels.shape[:2]
    return [
        (max(0, left + start - 3), max(0, top + first - 3), min(width, right + start + 4), min(height, low + first + 4))
        for left, top, right, low in spots
    ]


def _plain(grey: Pixels, piece: Spot) -> Iterator[Spot]:
    """What of a piece has the pattern beyond doubt, at its own size or, where modules are of a pixel, at twice that."""
    import cv2

    left, top, right, bottom = piece
    part = np.ascontiguousarray(grey[top:bottom, left:right])
    for scale in (1, 2):
        view = part if scale == 1 else cv2.resize(part, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        for x, y, far, low in _patterns(np.asarray(view, dtype=np.uint8), _SURELY, least=LEAST, full=FULL):
            yield left + x // scale, top + y // scale, left - -far // scale, top - -low // scale


def _patterns(grey: Pixels, strictness: _Strictness, *, least: int = 1, full: float = 0.0) -> Iterator[Spot]:
    """Rectangles round connected squares with the pattern of a code."""
    import cv2

    square = np.ones((WINDOW, WINDOW), dtype=np.uint8)
    light, dark = (turn(grey, square).astype(np.float32) for turn in (cv2.dilate, cv2.erode))
    contrast, middle = light - dark, (light + dark) / 2
    above = (grey > middle).astype(np.float32)
    changes = np.zeros_like(above)
    changes[:, 1:] = above[:, 1:] != above[:, :-1]
    changes[1:] += above[1:] != above[:-1]
    between = (np.abs(grey - middle) < contrast / 4).astype(np.float32)
    share, crossed, amid = (
        cv2.boxFilter(layer, cv2.CV_32F, (WINDOW, WINDOW), borderType=cv2.BORDER_REFLECT) for layer in (above, changes, between)
    )
    alike = (contrast >= CONTRAST) & (amid < strictness.between) & (crossed > strictness.changes) & (np.abs(share - 0.5) < 0.3)
    _, _, boxes, _ = cv2.connectedComponentsWithStats(alike.astype(np.uint8))
    height, width = grey.shape
    half = WINDOW // 2
    for x, y, across, down, count in boxes[1:].tolist():
        if min(across, down) >= least and count >= max(60.0, full * across * down):
            yield max(0, x - half), max(0, y - half), min(width, x + across + half), min(height, y + down + half)


def _corners(code: object) -> NDArray[np.int32]:
    """The corners [4, 2], x and y, between which the decoder saw a code."""
    at = code.position  # type: ignore[attr-defined]
    corners = (at.top_left, at.top_right, at.bottom_right, at.bottom_left)
    return np.array([(corner.x, corner.y) for corner in corners], dtype=np.int32)


def _spot(code: object) -> Spot:
    (left, top), (right, bottom) = (end.tolist() for end in (_corners(code).min(axis=0), _corners(code).max(axis=0)))
    return left, top, right, bottom


def _is_drawn(grey: Pixels, corners: NDArray[np.int32]) -> bool:
    """Whether what lies between the corners has two levels, however near each other they are, and little between them."""
    import cv2

    left, top = corners.min(axis=0).clip(0).tolist()
    part = grey[top : int(corners[:, 1].max()) + 1, left : int(corners[:, 0].max()) + 1]
    inside = np.zeros(part.shape, dtype=np.uint8)
    cv2.fillPoly(inside, [corners - np.array([left, top], dtype=np.int32)], (1,))
    levels = part[inside > 0].astype(np.float32)
    if not len(levels):
        return False
    dark, light = np.percentile(levels, (5, 95))
    return bool((np.abs(levels - (dark + light) / 2) < (light - dark) / 4).mean() <= BLURRED)


def _area(spot: Spot) -> int:
    return (spot[2] - spot[0]) * (spot[3] - spot[1])


def _grown(grey: Pixels, spot: Spot, pieces: list[Spot]) -> Spot:
    """A decoded spot with the pieces of pattern that overlap half of it, along the bars: the decoder names a few rows only."""
    left, top, right, bottom = spot
    if right - left > 2 * (bottom - top):
        top, bottom = _along(grey[:, left:right], top, bottom)
    elif bottom - top > 2 * (right - left):
        left, right = _along(grey[top:bottom].T, left, right)
    for piece in pieces:
        common = min(right, piece[2]) - max(left, piece[0]), min(bottom, piece[3]) - max(top, piece[1])
        width, height = (min(right - left, piece[2] - piece[0]), min(bottom - top, piece[3] - piece[1]))
        if min(common) >= 0 and common[0] * 2 > width and common[1] * 2 > height:
            left, top, right, bottom = min(left, piece[0]), min(top, piece[1]), max(right, piece[2]), max(bottom, piece[3])
    return left, top, right, bottom


def _along(bars: Pixels, first: int, last: int) -> tuple[int, int]:
    """The first row of bars [rows, length] and the one behind the last: a row is one where it changes as its neighbour does."""
    steps = np.diff(bars.astype(np.float32), axis=1)
    length = np.sqrt((steps * steps).sum(axis=1)) + 1.0
    alike = (steps[1:] * steps[:-1]).sum(axis=1) / (length[1:] * length[:-1]) > 0.6
    first, last = max(0, first), min(len(bars), max(last, first + 1))
    while first > 0 and alike[first - 1]:
        first -= 1
    while last < len(bars) and alike[last - 1]:
        last += 1
    return first, last
