"""Finds text and codes burned into pixels and blacks them out, or keeps the picture back: it is never passed unsaid.

Reads and writes nothing. `text_reader.py` says where text is and `codes.py` where codes are; what they say is forgotten.
A `FrameMasker` goes through the pictures of one file: what has not changed since it was looked at is not looked at again, and
what was found there is blacked out in every picture that shows it.

Measured by `tests/test_burned.py` and `tests/test_hard_text.py`, which draw their pictures. Letters under 10 pixels,
handwriting, and text fainter than the noise under it are not found reliably; neither are small letters in pictures that
`enlarge_up_to` leaves at their own scale, nor one letter by itself that fills a good part of the picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from stllava.config.base import Options
from stllava.intake.deidentify.codes import find_codes
from stllava.intake.deidentify.text_reader import Map, Pixels, TextRegion, read_regions, standing_out
from stllava.intake.readers.frame import Frame

Action = Literal["passed", "masked", "quarantined"]

ROUNDS = 3
"""How often a picture is looked at again after masking before it is kept back."""
NEAR = 24
"""How far in pixels around what was blacked out, or has changed, is looked at again."""
SAME = 2
"""Grey levels by which a picture may differ from one that was looked at and still show the same there: losses of JPEG."""
CELL = 16
"""Side in pixels of the squares that have changed or not."""
LOAD_SECONDS, SECONDS_A_MEGAPIXEL = 20.0, 60.0
"""What looking may take at most: the finder to be loaded, and three rounds over a picture on a slow or busy machine."""
MAX_COVERED = 0.4
"""Share of a picture beyond which text that covers it keeps it back instead of being masked."""
PRIMARY = frozenset({"CT", "MR"})
"""Modalities whose slices, where the file says that nothing is burned in, are not looked at by default."""


class BurnedOptions(Options):
    """How text in pixels is looked for and what is done with it."""

    look_for_text: Literal["rules", "doubtful", "all"] = "doubtful"
    """rules: nothing is looked at, and what is or may be burned is kept back; doubtful: all but CT and MR slices that carry no
    mark of it; all: every picture."""
    keep_markers: bool = False
    """Leave side and view markers (L, R, PA, …) and scale numbers of up to two digits where they are."""
    enlarge_up_to: NonNegativeInt = 1600
    """Pictures whose longer side is up to this many pixels are also looked at twice as large: needed for letters under 14."""


@dataclass(frozen=True)
class Box:
    """A place with text, in pixels; right and bottom are outside of it."""

    left: int
    top: int
    right: int
    bottom: int
    marker: bool = False
    """Whether it reads as a side or view marker or a scale number."""


Findings = tuple[tuple[Box, ...], ...]
"""What was found in a picture, round by round, the last one having found nothing unless the picture was kept back."""


@dataclass(frozen=True)
class MaskResult:
    """What became of a frame."""

    frame: Frame | None
    """The frame to be written; None when it is kept back."""
    action: Action
    reason: str
    """Why, in words that hold nothing of the text."""
    boxes: tuple[Box, ...] = ()
    """What was blacked out."""
    findings: Findings = ()
    """What was found on looking; empty of what was not looked at."""


class TextMasker(Protocol):
    """What treats the frames of one file in their order, and may remember the earlier ones."""

    def mask(self, frame: Frame, findings: Findings | None = None) -> MaskResult:
        """Black out text, or keep the picture back; `findings` is what was found in the frame when it was looked at."""


def find_text(pixels: Pixels, options: BurnedOptions | None = None, where: Map | None = None) -> list[Box]:
    """Every place with text or a code in pixels [H, W] or [H, W, 3], padded, from top to bottom.

    With a map, only what lies there, in part at least. Raises `StllavaError` without the extra `ocr`.
    """
    options = BurnedOptions() if options is None else options
    there = standing_out(pixels) if where is None else standing_out(pixels) & where
    if not there.any():
        return []
    height, width = there.shape
    regions = read_regions(
        pixels,
        there,
        enlarge_up_to=options.enlarge_up_to,
        markers=options.keep_markers,
    )
    boxes = {_padded(region, height=height, width=width) for region in regions}
    markers = [box for box in boxes if box.marker]
    # The letters of a marker have the pattern of a small code.
    spots = [Box(*spot) for spot in find_codes(pixels, there)]
    boxes |= {box for box in spots if not any(_overlap(box, marker) for marker in markers)}
    return sorted(
        (box for box in boxes if not any(_holds(other, box) for other in boxes - {box})), key=lambda box: (box.top, box.left)
    )


def mask_text(frame: Frame, options: BurnedOptions) -> MaskResult:
    """Mask, keep back or pass a frame by itself, with the reason; raises `StllavaError` when it must look and cannot."""
    return FrameMasker(options).mask(frame)


class FrameMasker:
    """Treats the pictures of one file in their order."""

    def __init__(self, options: BurnedOptions) -> None:
        self._options = options
        self._seen: Pixels | None = None
        """Of every square the pixels that were last looked at."""
        self._covered: list[Box] = []
        self._stuck: list[Box] = []
        """What letters were still found in after all rounds."""

    def mask(self, frame: Frame, findings: Findings | None = None) -> MaskResult:
        """Mask, keep back or pass the next frame, with the reason; `findings` is what was found in it when it was looked at.

        Raises `StllavaError` when it must look and cannot.
        """
        marked = {"yes": "the file says that text is burned in", "likely": "this kind of image often has text burned in"}
        if self._options.look_for_text == "rules":
            if frame.burned in marked:
                return MaskResult(None, "quarantined", f"{marked[frame.burned]}, and only rules were asked for")
            return MaskResult(frame, "passed", "not looked at: only rules were asked for")
        if self._options.look_for_text == "doubtful" and frame.burned == "no" and frame.facts.modality in PRIMARY:
            return MaskResult(frame, "passed", f"not looked at: {frame.facts.modality} slice without a mark of burned-in text")
        same = self._unchanged(frame.pixels)
        # A box is dropped when all of what it covered has changed; then what took its place is looked at.
        masked = [box for box in self._covered if _meets(box, same)]
        stuck = [box for box in self._stuck if _meets(box, same)]
        pixels = mask(frame.pixels, masked)
        rounds: list[tuple[Box, ...]] = []
        where = None if not same.any() else _around(~same)
        while not stuck:
            past = findings is not None and len(rounds) < len(findings)
            found = findings[len(rounds)] if past and findings else tuple(find_text(pixels, self._options, where))
            rounds.append(found)
            boxes = [box for box in found if not (self._options.keep_markers and box.marker)]
            if not boxes:
                break
            if len(rounds) == ROUNDS:
                stuck = boxes
                break
            masked += boxes
            pixels = mask(pixels, boxes)
            where = _around(_cover(boxes, same.shape))
        self._remember(frame.pixels, same, masked, stuck)
        return replace(self._result(frame, pixels, masked, stuck), findings=tuple(rounds))

    def _result(self, frame: Frame, pixels: Pixels, masked: list[Box], stuck: list[Box]) -> MaskResult:
        if stuck:
            return MaskResult(None, "quarantined", f"letters are still found after {ROUNDS} rounds of masking")
        if not masked:
            if frame.burned == "yes":
                return MaskResult(None, "quarantined", "the file says that text is burned in, and none was found to mask")
            return MaskResult(frame, "passed", "looked at: no text found")
        covered = float(_cover(masked, pixels.shape[:2]).mean())
        if covered > MAX_COVERED:
            return MaskResult(None, "quarantined", f"text covers {covered:.0%} of the picture")
        facts = replace(frame.facts, done=(*frame.facts.done, f"burned-in text masked ({len(masked)})"))
        reason = f"text found in {len(masked)} places"
        return MaskResult(replace(frame, pixels=pixels, facts=facts), "masked", reason, tuple(masked))

    def _unchanged(self, pixels: Pixels) -> Map:
        """Which pixels lie in squares that show what was looked at before."""
        if self._seen is None or self._seen.shape != pixels.shape:
            self._seen, self._covered, self._stuck = None, [], []
            return np.zeros(pixels.shape[:2], dtype=np.bool_)
        apart = np.abs(pixels.astype(np.int16) - self._seen) > SAME
        return ~_squares(apart if apart.ndim == 2 else apart.any(axis=2))

    def _remember(self, pixels: Pixels, same: Map, masked: list[Box], stuck: list[Box]) -> None:
        seen = pixels.copy()
        if self._seen is not None:
            # Not what is shown now: many small steps must not add up to something that was never looked at.
            seen[same] = self._seen[same]
        self._seen, self._covered, self._stuck = seen, masked, stuck


def mask(pixels: Pixels, boxes: Sequence[Box]) -> Pixels:
    """A copy of the pixels that is black in the boxes."""
    copy = pixels.copy()
    copy[_cover(boxes, pixels.shape[:2])] = 0
    return copy


def counts(actions: Mapping[str, int]) -> str:
    """One line for a report: how many frames were passed, masked and kept back."""
    return ", ".join(f"{actions[action]:,} {action}" for action in ("passed", "masked", "quarantined") if action in actions)


def _cover(boxes: Sequence[Box], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    covered = np.zeros(shape, dtype=np.bool_)
    for box in boxes:
        covered[box.top : box.bottom, box.left : box.right] = True
    return covered


def _squares(there: Map) -> Map:
    """The whole squares in which the map has something."""
    height, width = there.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    padded = np.zeros((rows * CELL, columns * CELL), dtype=np.bool_)
    padded[:height, :width] = there
    taken = padded.reshape(rows, CELL, columns, CELL).any(axis=(1, 3))
    return taken.repeat(CELL, axis=0).repeat(CELL, axis=1)[:height, :width]


def _around(there: Map) -> Map:
    """The map with what lies near."""
    import cv2

    square = np.ones((2 * NEAR + 1, 2 * NEAR + 1), dtype=np.uint8)
    grown: Map = np.asarray(cv2.dilate(there.astype(np.uint8), square)) > 0
    return grown


def _meets(box: Box, there: Map) -> bool:
    return bool(there[box.top : box.bottom, box.left : box.right].any())


def _overlap(box: Box, other: Box) -> bool:
    """Whether half of the box lies in the other."""
    across = min(box.right, other.right) - max(box.left, other.left)
    down = min(box.bottom, other.bottom) - max(box.top, other.top)
    return across > 0 and down > 0 and 2 * across * down >= (box.right - box.left) * (box.bottom - box.top)


def _padded(region: TextRegion, *, height: int, width: int) -> Box:
    """The upright box round a place and a rim, out to the border where that is nearer than a letter."""
    left, top = region.corners.min(axis=0).clip(0, [width, height])
    right, bottom = region.corners.max(axis=0).clip(0, [width, height])
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

    return Box(low(left), low(top), high(right, width), high(bottom, height), region.marker)


def _holds(outer: Box, inner: Box) -> bool:
    """Whether the inner box adds nothing: a marker may hide no other text, equal ones are told apart by their kind."""
    inside = outer.left <= inner.left and outer.top <= inner.top and outer.right >= inner.right and outer.bottom >= inner.bottom
    return inside and not (outer.marker and not inner.marker)
