"""Work that whoever does it may die of; without torch, so that a process that does it is there at once."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stllava.config import PairOptions
from stllava.config.execution import ExecutionOptions
from stllava.dropped import Dropped
from stllava.errors import StllavaError
from stllava.execution import working
from stllava.records import Image
from stllava.store import MappedChunks, Stage

IMAGES = [Image(id=f"i{number}", path=f"{number}.png") for number in range(20)]
LOCAL = ExecutionOptions(workers=2)


@dataclass(frozen=True)
class FatalWork:
    """Copies images; at some of them its process dies, or an error strikes."""

    folder: Path
    """Where the tries are counted."""
    deaths: tuple[tuple[str, int], ...] = ()
    """Ids at which it dies, each with how often."""
    raises: str = ""
    """Id at which an error that is no user's is raised."""
    refuses: str = ""
    """Id at which one that is the user's is raised."""
    pause: float = 0.01
    """Seconds that an image takes."""
    device: str = "cpu"
    notes: tuple[str, ...] = ("copied",)

    def __call__(self, chunk: Sequence[Image], /) -> tuple[list[Image], Dropped]:
        with (self.folder / "begun.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        for image in chunk:
            time.sleep(self.pause)
            if image.id == self.raises:
                raise RuntimeError("out of memory, say")
            if image.id == self.refuses:
                raise StllavaError("no such server", expected="one", remedy="Start it.")
            for key, times in self.deaths:
                tries = len(list(self.folder.glob(f"{key}.*")))
                if key == image.id and tries < times:
                    (self.folder / f"{key}.{tries}").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / "workers.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        kept = [Image(id=f"{image.id}-copy", path=image.path) for image in chunk if not image.id.endswith("7")]
        return kept, Dropped({"unlucky": len(chunk) - len(kept)})

    def close(self) -> None:
        pass

    def set_aside(self, chunk: Sequence[Image], detail: str, /) -> tuple[list[Image], Dropped]:
        return [], Dropped.set_aside(len(chunk), detail)


def copy(to: Path, work: FatalWork, execution: ExecutionOptions | None = None) -> MappedChunks[Image]:
    """Copy the images in chunks of three, into a stage of its own."""
    work.folder.mkdir(exist_ok=True)
    stage = Stage("copy", to, PairOptions(), inputs={}, existing="resume")
    with working(execution or ExecutionOptions()):
        made = stage.map_chunks(IMAGES, work, record_type=Image, size=3, unit="images", max_bad=0.05)
        stage.write_records("images", made.records)
    stage.finish(counts_in=len(IMAGES), counts_out=made.count, dropped=made.dropped, notes=made.notes, device=made.device)
    return made
