"""What an imported image set is made of on disk: the rows of `images.jsonl` and `left_out.jsonl`, and how to read them.

    from stllava.data.image_set import read_imported
    rows = read_imported(Path("data"))

An imported folder is the output of the stage `import-images`; every path is relative to it. Reads only; writes nothing.
"""

from pathlib import Path

from pydantic import Field

from stllava.records import Keyed, Record
from stllava.store import MANIFEST, read_manifest, read_records

STAGE = "import-images"
TRAIN = "train"
DEEP_FOLDER = "images-16-bit"
"""Where a set keeps the 16-bit pixels of its pictures."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are outside."""


class DeepImage(Record):
    """The 16-bit pixels of a picture, where they were kept; models do not see them.

    A pixel p stands for offset + step × p in the units of the source, such as Hounsfield units of CT; brighter is more.
    """

    path: str
    """A grey 16-bit PNG of the picture's size, relative to the set's folder."""
    content: str
    """SHA-256 of the written file's bytes."""
    offset: float
    """What a pixel of 0 stands for."""
    step: float
    """What the next pixel stands for more; below 0 where the picture was inverted."""
    black: float
    """The pixel up to which the 8-bit picture is black; may lie between pixels or beyond them all."""
    white: float
    """The pixel from which on the 8-bit picture is white."""
    masked: tuple[Box, ...]
    """Where text was blacked out of these pixels alone; what was blacked out of the 8-bit picture is black here too."""


class Imported(Keyed):
    """One picture of the set: pixels on disk and what may be told of them."""

    id: str
    """Hidden id of the source file's bytes and the frame."""
    path: str
    """Relative to the set's folder."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    modality: str
    """DICOM's code, such as CR or CT; empty when unknown."""
    body_part: str
    """In lower case; empty when unknown."""
    view: str
    """Such as PA, or the plane of a slice; empty when unknown."""
    laterality: str
    """L, R or B; empty when unknown."""
    labels: dict[str, str]
    """More harmless attributes by name."""
    source: str
    """Hidden id of the source file's bytes; pictures of one file share it."""
    patient: str
    """Hidden id; of the study, the folder or the file where the file names no patient."""
    study: str
    """Hidden id; one of its own where the file names none."""
    series: str
    """Hidden id; one of its own where the file names none."""
    frame: int | None
    """Place in the series or volume, from 0; None of a single picture."""
    done: tuple[str, ...]
    """What was done to the pixels, in order."""
    masked: tuple[Box, ...]
    """Where text was blacked out."""
    content: str
    """SHA-256 of the written file's bytes."""
    near: str | None = None
    """Id of the first earlier picture that this one nearly is."""
    split: str
    """Name of the split; a patient's pictures are all in one."""
    interval: int | None
    """Days from the patient's first study in the set to this one; None where either is unknown."""
    deep: DeepImage | None = Field(default=None, exclude_if=lambda kept: kept is None)
    """Its 16-bit pixels, where they were kept."""


class LeftOut(Record):
    """One file or picture that is not in the set; which file the number stands for is written beside the salt only."""

    number: int
    """Place of the file among all of the source folder, from 0."""
    source: str | None
    """Hidden id of its bytes; None where they could not be read."""
    frame: int | None
    """Which picture of it; None when the whole file, or the rest of it, is left out."""
    cause: str
    """Why, in a word that the manifest counts."""
    of: str | None = None
    """Of a duplicate, the id of the picture that stays."""


class RefusedPicture(Keyed):
    """A picture in which a reader found text that was left over: a line of `burned.jsonl`."""

    id: str
    """Hidden id of the picture."""
    salt: str
    """Hidden id of the salt under which the picture's id was made."""
    readers: tuple[str, ...]
    """Who found it."""


def is_imported(folder: Path) -> bool:
    """Whether the folder is a whole imported set."""
    return (folder / MANIFEST).is_file() and read_manifest(folder).stage == STAGE


def read_imported(folder: Path) -> list[Imported]:
    """All rows of a whole imported set, checked against its manifest."""
    return read_records(folder, "images", Imported)


def training(folder: Path) -> list[Imported]:
    """The pictures that may be learned from: those of the split `train`, or all of a set that has no such split."""
    rows = read_imported(folder)
    return [row for row in rows if row.split == TRAIN] or rows
