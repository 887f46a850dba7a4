"""Finds text burned into pixels and blacks it out, or keeps the picture back: it is never passed unsaid.

Reads and writes nothing. The finder is `rapidocr-onnxruntime` 1.4.4 (the extra `ocr`), whose models are in its wheel; nothing
is fetched or sent. What it reads is used here and forgotten: a `Box` says where text is, not what it says.

Measured by `tests/test_burned.py`, which draws its pictures. Letters under 10 pixels, handwriting, and text fainter than the
noise under it are not found reliably; neither are small letters in pictures that `fine_up_to` leaves at their own scale.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from stllava.config.base import Options, Share
from stllava.data.intake.frame import Frame
from stllava.errors import StllavaError

Action = Literal["passed", "masked", "quarantined"]
Pixels = NDArray[np.uint8]

TILE, OVERLAP = 960, 192
"""Side of the squares that the finder sees, and what neighbours share, in pixels after scaling."""
COARSE = 960
"""Longer side, in pixels, to which larger pictures are reduced once so that large letters are found whole."""
REACH, NOISE = 16, 6.0
"""How far contrast is levelled around a pixel, and the deviation in grey levels below which nothing is amplified further."""
ROUNDS = 3
"""How often a picture is looked at again after masking before it is kept back."""
LOAD_SECONDS, SECONDS_A_MEGAPIXEL = 20.0, 60.0
"""What looking may take at most: the finder to be loaded, and three rounds over a picture on a slow or busy machine."""
PRIMARY = frozenset({"CT", "MR"})
"""Modalities whose slices, where the file says that nothing is burned in, are not looked at by default."""

_MARKER = re.compile(r"L|R|LT|RT|PA|AP|LAT|LL|RL|RAO|LAO|RPO|LPO|MLO|CC|[AHFPSI]{1,2}|\d{1,2}(\.\d)?( ?[CM]M)?|[CM]M")


class BurnedOptions(Options):
    """How text in pixels is looked for and what is done with it."""

    look: Literal["rules", "doubtful", "all"] = "doubtful"
    """rules: nothing is looked at, and what is or may be burned is kept back; doubtful: all but CT and MR slices that carry no
    mark of it; all: every picture."""
    keep_markers: bool = False
    """Leave side and view markers (L, R, PA, …) and scale numbers of up to two digits where they are."""
    legible: Share = 0.5
    """Least confidence with which letters must be read for a place to count as text; lower masks more, letters and anatomy."""
    fine_up_to: int = Field(default=1600, ge=0)
    """Pictures whose longer side is up to this many pixels are also looked at twice as large: needed for letters under 14."""
    faint: bool = True
    """Look at a view of levelled contrast as well, for dark letters on dark ground and light ones on light."""
    most: Share = 0.4
    """A picture of which text covers more than this is kept back instead of masked."""


@dataclass(frozen=True)
class Box:
    """A place with text, in pixels; right and bottom are outside of it."""

    left: int
    top: int
    right: int
    bottom: int
    marker: bool = False
    """Whether it reads as a side or view marker or a scale number."""


@dataclass(frozen=True)
class Treated:
    """What became of a frame."""

    frame: Frame | None
    """The frame to be written; None when it is kept back."""
    action: Action
    reason: str
    """Why, in words that hold nothing of the text."""
    boxes: tuple[Box, ...] = ()
    """What was blacked out."""


class Engine(Protocol):
    """What is used of RapidOCR: four corners, letters and confidence of every place in a BGR picture."""

    def __call__(
        self, img_content: Pixels, use_cls: bool, text_score: float
    ) -> tuple[list[tuple[list[list[float]], str, float]] | None, object]: ...


@cache
def engine() -> Engine:
    """The finder, on one thread, loaded once a process; a missing one is a `StllavaError` that names the extra."""
    try:
        module = importlib.import_module("rapidocr_onnxruntime")
    except ImportError as error:
        raise StllavaError(
            f"no finder of burned-in text ({error})",
            expected="the extra `ocr`, unless only rules are asked for",
            remedy="Run `pip install 'stllava[ocr]'`, or set burned.look to rules: what may hold text is then kept back.",
        ) from None
    # "max" so that it does not enlarge our tiles once more; one thread because the importer keeps all cores busy.
    made: Engine = module.RapidOCR(det_limit_type="max", intra_op_num_threads=1, inter_op_num_threads=1)
    return made


def find_text(pixels: Pixels, options: BurnedOptions | None = None) -> list[Box]:
    """Every place with text in pixels [H, W] or [H, W, 3], padded, from top to bottom; raises `StllavaError` without OCR."""
    options = BurnedOptions() if options is None else options
    found: set[Box] = set()
    height, width = pixels.shape[:2]
    for view, scale in _views(pixels, options):
        for top, left, tile in _tiles(view):
            # A line that runs upwards reaches the reader upside down unless its direction is looked for.
            places, _ = engine()(np.ascontiguousarray(tile[:, :, ::-1]), use_cls=True, text_score=0.0)
            for corners, text, confidence in places or []:
                shifted = (np.asarray(corners) + np.array([left, top])) / scale
                if _is_text(shifted, text, confidence, least=options.legible, shorter=min(height, width)):
                    found.add(_padded(shifted, text, height=height, width=width))
    return sorted(
        (box for box in found if not any(_holds(other, box) for other in found - {box})), key=lambda box: (box.top, box.left)
    )


def treat(frame: Frame, options: BurnedOptions) -> Treated:
    """Mask, keep back or pass a frame, with the reason; raises `StllavaError` when it must look and cannot."""
    marked = {"yes": "the file says that text is burned in", "likely": "this kind of image often has text burned in"}
    if options.look == "rules":
        if frame.burned in marked:
            return Treated(None, "quarantined", f"{marked[frame.burned]}, and only rules were asked for")
        return Treated(frame, "passed", "not looked at: only rules were asked for")
    if options.look == "doubtful" and frame.burned == "no" and frame.facts.modality in PRIMARY:
        return Treated(frame, "passed", f"not looked at: {frame.facts.modality} slice without a mark of burned-in text")
    pixels, masked = frame.pixels, []
    for _ in range(ROUNDS):
        boxes = [box for box in find_text(pixels, options) if not (options.keep_markers and box.marker)]
        if not boxes:
            break
        masked += boxes
        pixels = mask(pixels, boxes)
    else:
        return Treated(None, "quarantined", f"letters are still found after {ROUNDS} rounds of masking")
    if not masked:
        if frame.burned == "yes":
            return Treated(None, "quarantined", "the file says that text is burned in, and none was found to mask")
        return Treated(frame, "passed", "looked at: no text found")
    covered = float(_cover(masked, pixels.shape[:2]).mean())
    if covered > options.most:
        return Treated(None, "quarantined", f"text covers {covered:.0%} of the picture")
    note = f"burned-in text masked ({len(masked)})"
    facts = replace(frame.facts, done=(*frame.facts.done, note))
    return Treated(replace(frame, pixels=pixels, facts=facts), "masked", f"text found in {len(masked)} places", tuple(masked))


def mask(pixels: Pixels, boxes: list[Box]) -> Pixels:
    """A copy of the pixels that is black in the boxes."""
    copy = pixels.copy()
    copy[_cover(boxes, pixels.shape[:2])] = 0
    return copy


def counts(treated: Mapping[str, int]) -> str:
    """One line for a report: how many frames were passed, masked and kept back."""
    return ", ".join(f"{treated[action]:,} {action}" for action in ("passed", "masked", "quarantined") if action in treated)


def _cover(boxes: list[Box], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    covered = np.zeros(shape, dtype=np.bool_)
    for box in boxes:
        covered[box.top : box.bottom, box.left : box.right] = True
    return covered


def _views(pixels: Pixels, options: BurnedOptions) -> Iterator[tuple[Pixels, float]]:
    """The picture as RGB at every scale at which it is looked at, with the scale."""
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    longer = max(colour.shape[:2])
    scales = [1.0]
    if longer <= options.fine_up_to:
        scales.append(2.0)
    if longer > COARSE:
        scales.append(COARSE / longer)
    for scale in scales:
        yield _scaled(colour, scale), scale
    if options.faint:
        finest = max(scales)
        yield _scaled(_levelled(colour), finest), finest


def _levelled(colour: Pixels) -> Pixels:
    """The picture with the same mean and contrast everywhere: its distance from the mean around it, in local deviations."""
    values = colour.astype(np.float32)
    mean = _box_mean(values)
    deviation = np.sqrt(np.maximum(_box_mean(values * values) - mean * mean, 0) + NOISE**2)
    return np.clip(128 + 45 * (values - mean) / deviation, 0, 255).astype(np.uint8)


def _box_mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over the square round each pixel, borders repeated; one channel at a time bounds the memory."""
    side = 2 * REACH + 1
    result = np.empty_like(values)
    for channel in range(values.shape[2]):
        sums = np.pad(values[:, :, channel], ((REACH + 1, REACH), (REACH + 1, REACH)), mode="edge").astype(np.float64)
        sums = sums.cumsum(axis=0).cumsum(axis=1)
        square = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
        result[:, :, channel] = square / side**2
    return result


def _scaled(colour: Pixels, scale: float) -> Pixels:
    if scale == 1:
        return colour
    height, width = (max(1, round(side * scale)) for side in colour.shape[:2])
    return np.asarray(Image.fromarray(colour).resize((width, height), Image.Resampling.BICUBIC))


def _tiles(view: Pixels) -> Iterator[tuple[int, int, Pixels]]:
    """Squares that cover the view and overlap, with their top and left."""
    height, width = view.shape[:2]
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            yield top, left, view[top:bottom, left:right]


def _spans(side: int) -> list[tuple[int, int]]:
    # A little more than a tile stays whole: an extra square would cost more than the longer side.
    if side <= TILE + OVERLAP:
        return [(0, side)]
    starts = [*range(0, side - TILE, TILE - OVERLAP), side - TILE]
    return [(start, start + TILE) for start in starts]


def _is_text(corners: NDArray[np.float64], text: str, confidence: float, *, least: float, shorter: int) -> bool:
    """Whether a place read so is text: one or two letters that fill a good part of the picture are anatomy."""
    letters = sum(character.isalnum() for character in text)
    size = float(np.ptp(corners, axis=0).min())
    return letters > 0 and confidence >= least and not (letters <= 2 and size > max(48.0, shorter / 8))


def _padded(corners: NDArray[np.float64], text: str, *, height: int, width: int) -> Box:
    """The upright box round four corners and a rim, out to the border where that is nearer than a letter."""
    left, top = corners.min(axis=0)
    right, bottom = corners.max(axis=0)
    letter = min(right - left, bottom - top, 64.0)
    rim = 2 + 0.2 * letter
    # The first or last letter of a line may be lost in a bright edge: one more is covered at both ends.
    if right - left > 2 * (bottom - top):
        left, right = left - letter, right + letter
    elif bottom - top > 2 * (right - left):
        top, bottom = top - letter, bottom + letter

    def low(value: float) -> int:
        return 0 if value - rim < letter else int(value - rim)

    def high(value: float, end: int) -> int:
        return end if value + rim > end - letter else int(value + rim) + 1

    marker = _MARKER.fullmatch(text.strip().upper()) is not None
    return Box(low(left), low(top), high(right, width), high(bottom, height), marker)


def _holds(outer: Box, inner: Box) -> bool:
    """Whether the inner box adds nothing: a marker may hide no other text, equal ones are told apart by their kind."""
    inside = outer.left <= inner.left and outer.top <= inner.top and outer.right >= inner.right and outer.bottom >= inner.bottom
    return inside and not (outer.marker and not inner.marker)
