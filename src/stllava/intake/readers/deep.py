"""Measured values as the 16-bit pixels that are kept beside an 8-bit picture. Pure."""

import numpy as np
from numpy.typing import NDArray

from stllava.intake.readers.frame import DeepPixels

LEVELS = 1 << 16
BAND = 256
"""Rows of which numbers of 64 bits are in memory at a time."""
REACH = 32
"""Of values that spread much farther than the window: so many of its widths are kept on both sides of its middle."""


def deep_pixels(
    measured: NDArray[np.number],
    *,
    black: float,
    white: float,
    inverted: bool = False,
    shown: NDArray[np.bool_] | None = None,
) -> DeepPixels | None:
    """Measured values [H, W] in 16 bits: one by one where whole numbers have room, else in equal steps; None of no value.

    Args:
        measured: In the units of the file; what is no finite number becomes 0.
        black: The value up to which the 8-bit picture is black, white where it is inverted.
        white: The value from which on it is white.
        inverted: Whether more is darker.
        shown: Where there is a picture; elsewhere pixels are 0.
    """
    there = np.isfinite(measured) if shown is None else shown & np.isfinite(measured)
    bands = [slice(top, top + BAND) for top in range(0, len(measured), BAND)]
    kept = [found for band in bands if (found := measured[band][there[band]]).size]
    if not kept:
        return None
    low, high = float(min(found.min() for found in kept)), float(max(found.max() for found in kept))
    step = 1.0
    if high - low >= LEVELS or not all(np.array_equal(found, np.rint(found)) for found in kept):
        width, middle = white - black, (white + black) / 2
        if 0 < 2 * REACH * width < high - low:
            low, high = max(low, middle - REACH * width), min(high, middle + REACH * width)
        step = ((high - low) or 1.0) / (LEVELS - 1)
    offset, step = (high, -step) if inverted else (low, step)
    ends = sorted(((black - offset) / step, (white - offset) / step))
    if not np.isfinite([offset, step, *ends]).all():
        return None  # Of values as far apart as numbers go, no page could say what a pixel stands for.
    pixels = np.zeros(measured.shape, dtype=np.uint16)
    for band in bands:
        values = np.where(there[band], measured[band], offset).astype(np.float64)
        with np.errstate(over="ignore"):
            pixels[band] = np.where(there[band], np.rint((values - offset) / step).clip(0, LEVELS - 1), 0)
    return DeepPixels(pixels, offset, step, ends[0], ends[1])
