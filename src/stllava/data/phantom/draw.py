"""Synthetic radiology phantoms: images drawn from a known truth.

    pixels = draw(make_truth(seed, index, split), size=128, seed=seed)

Reads and writes nothing. A phantom is painted on body coordinates: x and y from -1 to 1, y downwards, moved against the
image by a random pose.
"""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from stllava.data.phantom.canvas import Canvas, Grey, grid, posed, ramp
from stllava.data.phantom.truth import LEVELS, Finding, Modality, Region, Truth, make_truth, random

__all__ = ["Truth", "draw", "make_truth", "png"]

ANATOMY_LIGHT = 0.72
"""Anatomy is dimmed so that a finding stands out from bone, as a wide window makes it."""
PLACES: dict[tuple[Region, Modality], tuple[float, float, float]] = {
    ("chest", "x-ray"): (0.44, -0.08, 0.37),
    ("chest", "ct"): (0.44, 0.0, 0.29),
    ("abdomen", "ct"): (0.44, 0.0, 0.34),
    ("head", "ct"): (0.31, 0.0, 0.42),
    ("head", "mr"): (0.31, 0.0, 0.42),
}
"""Distance of a finding's middle from the midline, height of the middle level, distance of the levels."""
RADII: dict[Finding, tuple[float, float]] = {
    "nodule": (0.12, 0.2),
    "mass": (0.19, 0.3),
    "consolidation": (0.18, 0.3),
    "cyst": (0.13, 0.24),
    "hemorrhage": (0.16, 0.27),
    "tumor": (0.16, 0.27),
    "edema": (0.18, 0.3),
}
"""Radius of a small and of a large one; 0.1 is 6.4 pixels across at 64 pixels."""


def _dome(c: Canvas) -> Grey:
    """Height of the diaphragm; the liver lifts the patient's right half."""
    lean: Grey = np.clip(c.x * 6, -1, 1)
    arch: Grey = (abs(c.x) - 0.36) ** 2
    return 0.48 + 1.1 * arch + 0.06 * lean


def _thorax(c: Canvas) -> Grey:
    """Mask of the halves of the thorax in a frontal x-ray, on below the diaphragm."""
    return np.maximum(c.ellipse(-0.40, 0.06, 0.32, 0.76), c.ellipse(0.40, 0.06, 0.32, 0.76))


def _lungs(c: Canvas, modality: Modality) -> Grey:
    """Mask of both lungs."""
    if modality == "ct":
        return np.maximum(c.ellipse(-0.43, 0, 0.34, 0.50), c.ellipse(0.43, 0, 0.34, 0.50))
    both = _thorax(c)
    return both * ramp(_dome(c) - c.y, 0.04)


def _bones(c: Canvas, rng: np.random.Generator) -> Grey:
    """The spine of a frontal x-ray: vertebrae and the gaps between them."""
    rows: Grey = np.cos((c.y + float(rng.uniform(0, 0.2))) * (2 * np.pi / 0.21))
    return ramp(0.1 - abs(c.x), 0.04) * (0.65 + 0.35 * rows)


def _chest_xray(c: Canvas, rng: np.random.Generator) -> None:
    c.paint(c.ellipse(0, -0.95, 0.26, 0.5, 0.06), 0.55)
    c.paint(c.ellipse(0, 0.42, 0.93, 1.2, 0.06), 0.55)
    lungs = _lungs(c, "x-ray")
    c.paint(lungs, 0.17 + 0.05 * c.y)
    arcs = (c.y + 0.55 * (abs(c.x) - 0.2) ** 2 + float(rng.uniform(0, 0.2))) * (2 * np.pi / 0.19)
    cage = c.ellipse(0, 0.02, 0.78, 0.85, 0.05) * np.clip((abs(c.x) - 0.1) / 0.1, 0, 1)
    c.grey += 0.1 * cage * np.clip(np.cos(arcs) * 2 - 0.8, 0, 1)
    c.grey += 0.1 * np.exp(-(((c.y + 0.6 + 0.2 * abs(c.x)) / 0.03) ** 2)) * (abs(c.x) > 0.06) * (abs(c.x) < 0.75)
    for side in (-1, 1):
        c.grey += 0.12 * c.bump(side * 0.17, -0.02, 0.06, 0.16)
    heart = float(rng.uniform(0.23, 0.27))
    c.paint(c.ellipse(0.09, 0.27, heart, 0.27, 0.04), 0.66)
    c.grey += 0.16 * _bones(c, rng)


def _chest_ct(c: Canvas, rng: np.random.Generator) -> None:
    c.paint(c.ellipse(0, 0, 0.93, 0.70), 0.32)
    c.paint(c.ellipse(0, 0, 0.86, 0.63), 0.52)
    ribs = c.ellipse(0, 0, 0.84, 0.61) - c.ellipse(0, 0, 0.77, 0.54)
    c.paint(ribs * np.clip(np.cos(11 * np.arctan2(c.y, c.x) + float(rng.uniform(0, 6))) * 3 - 1, 0, 1), 0.88)
    lungs = _lungs(c, "ct")
    c.paint(lungs, 0.08)
    for _ in range(4):
        cx, cy = float(rng.choice((-1, 1)) * rng.uniform(0.25, 0.55)), float(rng.uniform(-0.3, 0.3))
        c.grey += 0.16 * lungs * c.bump(cx, cy, 0.03, 0.03)
    c.paint(c.ellipse(0.09, -0.1, 0.25, 0.27), 0.58)
    c.paint(c.ellipse(0.12, 0.24, 0.08, 0.08), 0.66)
    c.paint(c.ellipse(0, 0.4, 0.14, 0.11), 0.9)
    c.paint(c.ellipse(0, 0.56, 0.04, 0.09), 0.85)


def _abdomen_ct(c: Canvas, rng: np.random.Generator) -> None:
    jitter: list[list[float]] = rng.uniform(-0.03, 0.03, (7, 2)).tolist()
    c.paint(c.ellipse(0, 0, 0.93, 0.74), 0.2)
    c.paint(c.ellipse(0, 0, 0.82, 0.63), 0.4)
    c.paint(c.ellipse(0, -0.02, 0.78, 0.58), 0.3)
    c.paint(c.ellipse(0.24 + jitter[0][0], -0.3 + jitter[0][1], 0.26, 0.18), 0.34)
    c.paint(c.ellipse(-0.36 + jitter[1][0], -0.16 + jitter[1][1], 0.4, 0.36), 0.56)
    c.paint(c.ellipse(0.56 + jitter[2][0], -0.06 + jitter[2][1], 0.17, 0.26), 0.52)
    for dx, dy in jitter[3:6]:
        c.paint(c.ellipse(0.1 + 5 * dx, 0.1 + 3 * dy, 0.09, 0.08), 0.46)
    for side in (-1, 1):
        c.paint(c.ellipse(side * 0.37 + jitter[6][0], 0.32 + jitter[6][1], 0.15, 0.12), 0.62)
        c.paint(c.ellipse(side * 0.33 + jitter[6][0], 0.32 + jitter[6][1], 0.06, 0.05), 0.5)
    c.paint(c.ellipse(0.04, 0.21, 0.06, 0.06), 0.64)
    c.paint(c.ellipse(0, 0.4, 0.14, 0.11), 0.92)
    c.paint(c.ellipse(0, 0.4, 0.12, 0.09), 0.92)
    c.paint(c.ellipse(0, 0.53, 0.04, 0.07), 0.92)


def _head(c: Canvas, rng: np.random.Generator, modality: Modality) -> None:
    ct = modality == "ct"
    c.paint(c.ellipse(0, 0, 0.74, 0.9), 0.34 if ct else 0.8)
    c.paint(c.ellipse(0, 0, 0.70, 0.86), 0.98 if ct else 0.05)
    c.paint(c.ellipse(0, 0, 0.61, 0.77), 0.2 if ct else 0.1)
    c.paint(c.ellipse(0, 0, 0.59, 0.75), 0.44 if ct else 0.42)
    if ct:
        c.grey += 0.06 * c.ellipse(0, 0, 0.48, 0.63, 0.06)
    else:
        fold = float(rng.uniform(0, 6))
        angle = np.arctan2(c.y, c.x)
        ripple = 0.05 * np.sin(13 * angle + fold) + 0.03 * np.sin(21 * angle)
        depth = 1 - np.hypot(c.x / 0.5, c.y / 0.66) + ripple
        c.paint(np.clip(depth / 0.05, 0, 1), 0.58)
    c.grey -= 0.1 * np.exp(-((c.x / 0.014) ** 2)) * (abs(c.y) < 0.74)
    width, gap = float(rng.uniform(0.045, 0.065)), float(rng.uniform(0.08, 0.1))
    for side in (-1, 1):
        lean = Canvas(c.x - side * (gap + 0.35 * (c.y + 0.02) ** 2), c.y, c.grey)
        c.paint(lean.ellipse(0, -0.02, width, 0.26), 0.16 if ct else 0.1)


def _effusion(c: Canvas, truth: Truth, rng: np.random.Generator) -> None:
    """Fluid at the lung's base, or behind it where the patient lies in a CT."""
    sign = 1 if truth.side == "left" else -1
    half = np.clip(sign * c.x / 0.02, 0, 1)
    meniscus: Grey = (abs(c.x) - 0.36) ** 2
    wobble = float(rng.uniform(-0.02, 0.02))
    if truth.modality == "ct":
        surface = (0.24 if truth.size == "small" else 0.02) + wobble - 0.7 * meniscus
        c.paint(_lungs(c, "ct") * half * ramp(c.y - surface, 0.03), 0.7)
    else:
        surface = (0.3 if truth.size == "small" else 0.04) + wobble - 1.1 * meniscus
        c.paint(_thorax(c) * half * ramp(c.y - surface, 0.05) * ramp(_dome(c) + 0.12 - c.y, 0.16), 0.82)


def _inside(c: Canvas, truth: Truth) -> Grey:
    """Where a finding may be."""
    if truth.region == "head":
        return c.ellipse(0, 0, 0.585, 0.745)
    if truth.modality == "x-ray":
        return c.ellipse(0, 0.06, 0.76, 0.84)
    return c.ellipse(0, 0, 0.8, 0.6)


def _one(
    c: Canvas, finding: Finding, at: tuple[float, float], radius: float, rng: np.random.Generator
) -> tuple[Grey, float | Grey]:
    """Mask and grey value of one finding."""
    stretch = float(rng.uniform(0.94, 1.06))
    shape = (*at, radius * stretch, radius / stretch)
    waves = [(float(rng.uniform(0.5, 1)), float(rng.uniform(0, 2 * np.pi))) for _ in range(4)]
    if finding == "mass":
        return c.blob(*at, radius, tuple((0.05 * size, phase) for size, phase in waves)), 0.96
    if finding == "hemorrhage":
        return c.blob(*at, radius, tuple((0.15 * size, phase) for size, phase in waves)), 0.94
    if finding == "consolidation":
        ripples = [np.sin(25 * np.cos(turn) * c.x + 25 * np.sin(turn) * c.y + 9 * size) for size, turn in waves[:3]]
        grain = (ripples[0] + ripples[1] + ripples[2]) * np.float32(1 / 3)
        return c.bump(*shape) * (0.82 + 0.25 * grain), 0.82
    if finding == "tumor":
        return c.ellipse(*shape), 0.98 - 0.9 * c.ellipse(*at, shape[2] * 0.58, shape[3] * 0.58)
    if finding == "edema":
        return 0.95 * c.bump(*shape), 0.03
    return c.ellipse(*shape), 0.03 if finding == "cyst" else 0.95


def _findings(c: Canvas, truth: Truth, rng: np.random.Generator) -> None:
    if truth.finding == "effusion":
        _effusion(c, truth, rng)
    elif truth.level is not None:
        across, middle, step = PLACES[truth.region, truth.modality]
        rank = LEVELS.index(truth.level) - 1
        if (truth.region, truth.modality, rank) == ("chest", "x-ray", -1):
            across -= 0.06
        cx = (1 if truth.side == "left" else -1) * (across + float(rng.uniform(-0.04, 0.04)))
        cy = middle + rank * step + float(rng.uniform(-0.04, 0.04))
        radius = RADII[truth.finding][truth.size == "large"] * float(rng.uniform(0.95, 1.05))
        inside, zigzag = _inside(c, truth), float(rng.choice((-0.11, 0.11))) if truth.count > 1 else 0.0
        for number in range(truth.count):
            at = (cx + 0.22 * (number - (truth.count - 1) / 2), cy + (zigzag if number % 2 else -zigzag))
            mask, value = _one(c, truth.finding, at, radius, rng)
            c.paint(mask * inside, value)


ANATOMY: dict[tuple[Region, Modality], Callable[[Canvas, np.random.Generator], None]] = {
    ("chest", "x-ray"): _chest_xray,
    ("chest", "ct"): _chest_ct,
    ("abdomen", "ct"): _abdomen_ct,
    ("head", "ct"): lambda c, rng: _head(c, rng, "ct"),
    ("head", "mr"): lambda c, rng: _head(c, rng, "mr"),
}


def draw(truth: Truth, *, size: int = 128, seed: int) -> npt.NDArray[np.uint8]:
    """The phantom in grey, [size, size]; pose, anatomy and noise hang on path and seed only, not on the finding."""
    rng = random("anatomy", seed, truth.path)
    canvas = posed(size, rng)
    ANATOMY[truth.region, truth.modality](canvas, rng)
    canvas.grey *= ANATOMY_LIGHT
    _findings(canvas, truth, random("finding", seed, truth.path))
    grey, look = canvas.grey, random("look", seed, truth.path)
    noise = {"x-ray": 0.018, "ct": 0.024, "mr": 0.03}[truth.modality]
    grey = grey * float(look.uniform(0.93, 1.04)) + noise * look.standard_normal(grey.shape, np.float32)
    if truth.modality == "mr":
        x, y = grid(size)
        grey *= 1 + float(look.uniform(-0.08, 0.08)) * x + float(look.uniform(-0.08, 0.08)) * y
    return (np.clip(abs(grey) if truth.modality == "mr" else grey, 0, 1) * 255).astype(np.uint8)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
