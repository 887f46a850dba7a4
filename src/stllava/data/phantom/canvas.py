"""What phantoms are painted with: grey values, soft-edged shapes and body coordinates. Reads and writes nothing.

x and y run from -1 to 1, y downwards. Everything is float32: a Python float keeps it so, a numpy float64 would not.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Grey = npt.NDArray[np.float32]


def ramp(height: Grey, width: float) -> Grey:
    """0 to 1 as the height rises through zero, over that width."""
    clipped: Grey = np.clip(height / width + 0.5, 0, 1)
    return clipped


@dataclass
class Canvas:
    """A picture in the making with its body coordinates."""

    x: Grey
    y: Grey
    grey: Grey

    def paint(self, mask: Grey, value: float | Grey) -> None:
        """Cover with a grey value where the mask is 1."""
        self.grey += mask * (value - self.grey)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, edge: float = 0.02) -> Grey:
        """1 inside, 0 outside, with an edge that wide."""
        return ramp(1 - ((self.x - cx) / rx) ** 2 - ((self.y - cy) / ry) ** 2, 2 * edge / min(rx, ry))

    def blob(self, cx: float, cy: float, radius: float, waves: tuple[tuple[float, float], ...]) -> Grey:
        """A round shape whose radius swings by amplitude and phase at 2, 3, … waves a turn."""
        dx, dy = self.x - cx, self.y - cy
        angle = np.arctan2(dy, dx)
        border = radius * (1 + sum(a * np.sin(k * angle + phase) for k, (a, phase) in enumerate(waves, 2)))
        return ramp(border - np.hypot(dx, dy), 0.03)

    def bump(self, cx: float, cy: float, rx: float, ry: float) -> Grey:
        """A Gaussian hill of height 1 whose half height is at the radii."""
        hill: Grey = np.exp2(-(((self.x - cx) / rx) ** 2) - ((self.y - cy) / ry) ** 2)
        return hill


@cache
def grid(size: int) -> tuple[Grey, Grey]:
    """x and y of every pixel of the image."""
    line = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    x, y = np.meshgrid(line, line)
    return x, y


def posed(size: int, rng: np.random.Generator) -> Canvas:
    """An empty canvas, body turned, scaled and shifted a little against the image."""
    x, y = grid(size)
    turn, scale = rng.uniform(-0.06, 0.06), rng.uniform(0.93, 1.05)
    x, y = x - float(rng.uniform(-0.05, 0.05)), y - float(rng.uniform(-0.04, 0.04))
    cos, sin = float(np.cos(turn) / scale), float(np.sin(turn) / scale)
    return Canvas(cos * x + sin * y, cos * y - sin * x, np.full((size, size), 0.03, np.float32))
