"""Text in the 16-bit pixels of a picture that its 8 bits do not show: looked for in two views, and blacked out.

Window and level make visible what is black on black in 8 bits, so that looking at the 8-bit picture is not enough. Each view
goes through a masker of its own, by the rules by which the pictures do: what is not looked at there is not looked at here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stllava.config import IntakeOptions
from stllava.intake.deidentify.burned_text import Box, MaskResult, TextMasker
from stllava.intake.readers.frame import DeepPixels, Frame

RADIUS = 15
"""Half the side in pixels of the square by whose mean and spread a pixel is seen in the local view."""
SPREADS = 3
"""So many times its square's spread beyond the mean a pixel is black or white in the local view."""
BAND = 256
"""Rows of the local view that are in memory as numbers of 64 bits."""
MOST_ALIKE = 1 / 64
"""Share of the pixels for which those of one value count at most in the even view, so that a background does not fill it."""


def even_view(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The pixels with every value as far from the next as it is frequent, [H, W]: shows large and middle-sized things."""
    counts = np.minimum(np.bincount(values.ravel(), minlength=1 << 16), values.size * MOST_ALIKE)
    light = np.cumsum(counts)
    light -= light[int(values.min())]
    return (light * (255 / (float(light[-1]) or 1.0))).astype(np.uint8)[values]


def local_view(values: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Every pixel by its distance from the mean around it, in spreads of what lies there, [H, W].

    Shows letters that differ by one level from a plain background as well as those that stand out of noise.
    """
    padded, view, middle = np.pad(values, RADIUS, mode="edge"), np.empty(values.shape, dtype=np.uint8), float(values.mean())
    for top in range(0, len(values), BAND):
        around = padded[top : top + BAND + 2 * RADIUS].astype(np.float64) - middle
        plain, mean = around[RADIUS:-RADIUS, RADIUS:-RADIUS], _square_means(around)
        spread = np.sqrt(np.maximum(_square_means(around**2) - mean**2, 0))
        # One level is the least that can be seen; below half of it there is nothing but rounding.
        light = ((plain - mean) / np.maximum(spread, 0.5)).clip(-SPREADS, SPREADS)
        view[top : top + BAND] = light * (127 / SPREADS) + 128
    return view


VIEWS = (even_view, local_view)


class DeepMasker:
    """Treats the 16-bit pixels of one file's pictures in their order; asks for a masker a view once there are such pixels."""

    def __init__(self, make: Callable[[], TextMasker], options: IntakeOptions) -> None:
        self._make, self._options = make, options
        self._maskers: list[TextMasker] = []

    def mask(self, frame: Frame, result: MaskResult) -> tuple[DeepPixels | None, tuple[Box, ...]]:
        """The 16-bit pixels of a picture of which `result` came, without text, and where it was found in them alone.

        None where there are none, or where text is left in them that cannot be blacked out: the picture stays without them.
        """
        deep = frame.deep
        if deep is None or result.frame is None:
            return None, ()
        self._maskers = self._maskers or [self._make() for _ in VIEWS]
        # Text that the file announces was found in the 8-bit picture, or that one would not have passed.
        seen = replace(frame, burned=frame.burned if frame.burned == "no" else "unknown", deep=None)
        boxes: list[Box] = []
        for view, masker in zip(VIEWS, self._maskers, strict=True):
            found = masker.mask(replace(seen, pixels=view(deep.values)))
            if found.frame is None:
                return None, ()
            boxes += found.boxes
        alone = tuple(box for box in boxes if box not in result.boxes)
        if alone and self._options.text == "quarantine":
            return None, ()
        return replace(deep, values=_blacked_out(deep.values, (*result.boxes, *alone))), alone


def _blacked_out(values: NDArray[np.uint16], boxes: Sequence[Box]) -> NDArray[np.uint16]:
    """A copy of the pixels that is black in the boxes."""
    copy = values.copy()
    for box in boxes:
        copy[box.top : box.bottom, box.left : box.right] = 0
    return copy


def _square_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each square in values [H, W], which begin and end `RADIUS` beyond the places that are asked about."""
    side = 2 * RADIUS + 1
    sums = np.pad(values.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    return np.asarray(sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2
