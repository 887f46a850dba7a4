"""What a stage at work leaves for those who watch it, and that nothing of that stays when it is done."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from stllava.config import JudgeOptions
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.records import Image
from stllava.store import CURVES, OUTLOOK, PARTS, CurvePoint, Outlook, Stage, read_jsonl, read_record


class Copying:
    """Makes an image of every image, until it is told to stop."""

    device = "cpu"
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, *, stop_after: int) -> None:
        self.left, self.seen, self.folder = stop_after, list[Outlook](), folder

    def __call__(self, chunk: Sequence[Image], /) -> tuple[list[Image], Dropped]:
        self.seen.append(read_record(self.folder / PARTS / OUTLOOK, Outlook))
        self.left -= 1
        if self.left < 0:
            raise StllavaError("stopped", expected="to go on", remedy="Go on.")
        return list(chunk), Dropped()

    def set_aside(self, chunk: Sequence[Image], detail: str, /) -> tuple[list[Image], Dropped]:
        return [], Dropped({detail: len(chunk)})

    def close(self) -> None:
        """Nothing was opened."""


def test_a_stage_says_how_much_there_is_to_do_while_it_is_at_work(tmp_path: Path) -> None:
    images = [Image(id=f"{number}", path=f"{number}.png") for number in range(25)]

    def start(work: Copying) -> Stage:
        stage = Stage("ask", tmp_path, JudgeOptions(), inputs={}, existing="resume")
        stage.map_chunks(images, work, record_type=Image, size=10, unit="images", max_bad=0.0)
        return stage

    with pytest.raises(StllavaError, match="stopped"):
        start(Copying(tmp_path, stop_after=1))
    work = Copying(tmp_path, stop_after=9)
    stage = start(work)
    assert set(work.seen) == {Outlook(unit="images", items=25, chunk=10)}
    stage.finish(counts_in=25, counts_out=25)
    assert not (tmp_path / PARTS).exists()


def test_what_is_told_to_watchers_settles_no_options(tmp_path: Path) -> None:
    Stage("judge", tmp_path, JudgeOptions(), inputs={}, existing="resume")
    (tmp_path / PARTS).mkdir()
    (tmp_path / PARTS / CURVES).write_text(CurvePoint(at=0.0, step=1, steps=2, values={"loss": 1.0}).model_dump_json() + "\n")
    assert len(read_jsonl(tmp_path / PARTS / CURVES, CurvePoint)) == 1
    Stage("judge", tmp_path, JudgeOptions(orders=1), inputs={}, existing="resume")
    assert not (tmp_path / PARTS).exists()
