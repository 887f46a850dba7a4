"""Files of many frames: one look at what stays the same, a line while it lasts, and nothing looked at twice after a kill.

The kind comes from public ultrasound cines of 30 and 120 frames, whose text does not move and held two workers for minutes.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from intake_parts import CINE, FAST, brought, cine
from stllava.data.intake.imported import read_imported

SIDE = 128


def still(folder: Path, name: str = "cine") -> None:
    """A picture that the reader makes a file of 30 frames of: noise with a white square in the half that stays."""
    pixels = np.random.default_rng(7).integers(0, 200, (SIDE, SIDE), dtype=np.uint8)
    pixels[100:110, 40:60] = 255
    (folder / "in").mkdir(exist_ok=True)
    Image.fromarray(pixels).save(folder / "in" / f"{name}.png")


def looks(folder: Path) -> list[tuple[int, int]]:
    """The frame of every look that ended, and how many pixels it was at; 0 of all."""
    lines = (folder / "looks").read_text().splitlines()
    return [(int(frame), int(pixels)) for frame, pixels in map(str.split, lines)]


def test_frames_of_one_file_share_the_look_at_what_stays_the_same(tmp_path: Path) -> None:
    still(tmp_path)
    brought(tmp_path, make=cine)
    rows = read_imported(tmp_path / "data")
    assert len(rows) == CINE
    assert {row.masked for row in rows} == {((40, 100, 60, 110),)}
    seen = looks(tmp_path)
    assert [at for at, pixels in seen if not pixels] == [0], "only the first frame is looked at whole"
    assert {at for at, _ in seen} == set(range(CINE)), "no frame is skipped where something changed"
    assert len(seen) == CINE + 1, "what was masked stays masked without another round"


def test_a_file_begins_with_a_look_of_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        still(tmp_path, name)
    brought(tmp_path, FAST, make=cine)
    assert [at for at, pixels in looks(tmp_path) if not pixels] == [0, 0]
