"""Files of many frames: one look at what stays the same, a line while it lasts, and nothing looked at twice after a kill.

The kind comes from public ultrasound cines of 30 and 120 frames, whose text does not move and held two workers for minutes.
"""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.intake_parts import CINE, FAST, cine, import_folder
from stllava import progress
from stllava.data.image_set import read_imported
from stllava.intake.convert import FrameFindings, convert
from stllava.intake.deidentify import burned_text
from stllava.intake.deidentify.pseudonyms import hidden_id
from stllava.intake.workers import Job, Note

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
    for name in ("one", "two"):
        still(tmp_path, name)
    import_folder(tmp_path, make=cine)
    rows = read_imported(tmp_path / "data")
    assert {row.masked for row in rows} == {((40, 100, 60, 110),)}
    seen = looks(tmp_path)
    assert [at for at, pixels in seen if not pixels] == [0, 0], "only the first frame of each file is looked at whole"
    assert {at for at, _ in seen} == set(range(CINE)), "no frame is skipped where something changed"
    assert len(seen) == 2 * (CINE + 1), "what was masked stays masked without another round"


def begin(folder: Path) -> "subprocess.Popen[bytes]":
    """An import of the folder in a process of its own."""
    call = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2:]\n"
        "from helpers.intake_parts import FAST, import_folder, cine\n"
        "if __name__ == '__main__': import_folder(Path(sys.argv[1]), FAST.model_copy(update={'seconds': 60.0}), make=cine)"
    )
    command = [sys.executable, "-c", call, str(folder), *sys.path]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def wait_for(done: Callable[[], bool]) -> None:
    """Until it is so, for a minute at most."""
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def test_nothing_that_was_looked_at_is_looked_at_again_after_a_kill(tmp_path: Path) -> None:
    still(tmp_path, "Doe")
    options = FAST.model_copy(update={"seconds": 60.0})
    import_folder(tmp_path, options, make=cine, to="whole")
    once = looks(tmp_path)
    (tmp_path / "looks").unlink()
    kept = tmp_path / "data" / "parts" / "findings" / "00000000.jsonl"
    (tmp_path / "stop").write_text("12")
    with begin(tmp_path) as process:
        wait_for(lambda: kept.is_file() and len(kept.read_bytes().splitlines()) == 12)
        process.kill()
    (tmp_path / "stop").unlink()
    first = json.loads(kept.read_text().splitlines()[0])
    assert first["findings"] == [[{"left": 40, "top": 100, "right": 60, "bottom": 110, "marker": False}], []]
    assert b"Doe" not in kept.read_bytes()
    assert hashlib.sha256((tmp_path / "in" / "Doe.png").read_bytes()).hexdigest().encode() not in kept.read_bytes()
    with kept.open("a") as file:
        file.write('damaged\n{"number": 0, "source": "torn')
    manifest = import_folder(tmp_path, options, make=cine)
    assert looks(tmp_path) == once, "each frame was looked at once in both goes together"
    whole, killed = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "whole", tmp_path / "data")
    )
    assert whole.keys() == killed.keys()
    assert [name for name in whole if name != "manifest.json" and whole[name] != killed[name]] == []
    assert manifest.counts_out == CINE


def test_what_was_kept_of_other_bytes_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burned_text, "find_text", burned_text.find_text)  # `cine` replaces it
    still(tmp_path)
    path = tmp_path / "in" / "cine.png"
    of = hidden_id(b"salt", "source", hashlib.sha256(path.read_bytes()).hexdigest())
    work = partial(convert, options=FAST, salt=b"salt", to=tmp_path / "data", toolbox=cine(FAST))
    for source, looked_at in ((of, CINE - 1), ("another", CINE)):
        note = FrameFindings(number=0, source=source, index=0, findings=((),)).model_dump_json()
        said = list(work(Job(0, path, path.stat().st_size, notes=(note,))))
        assert len([one for one in said if isinstance(one, Note)]) == looked_at


@pytest.mark.slow
def test_a_line_of_progress_comes_by_picture_and_while_one_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    still(tmp_path)
    (tmp_path / "slow").write_text("0.2")  # so long that a busy machine, too, has a line between two pictures
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.02)
    import_folder(tmp_path, make=cine)
    lines = [line for line in capsys.readouterr().err.splitlines() if " 0/1 files" in line]
    counts = [int(found[1]) for line in lines if (found := re.search(r"· (\d+) pictures", line))]
    assert len(set(counts)) > CINE // 2, lines
    assert counts == sorted(counts)
    assert len(counts) > 2 * len(set(counts)), "it does not wait for the picture"
