"""Options of `import images`: what is read of every file, what is written, and which pictures are left out."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from stllava.config.base import Options, Share

FrameChoice = Literal["all", "middle", "every", "mip"]
WindowChoice = Literal["auto", "file", "lung", "mediastinum", "brain", "bone", "abdomen"]
Plane = Literal["acquired", "axial", "coronal", "sagittal", "all"]


class SplitShares(Options):
    """Shares of the patients by split, which sum to 1."""

    train: Share = 0.0
    """Share of the patients whose pictures are for training."""
    validation: Share = 0.0
    """Share of the patients whose pictures choose the best round."""
    test: Share = 0.0
    """Share of the patients whose pictures measure it."""

    @model_validator(mode="after")
    def _sum_to_1(self) -> Self:
        if abs(self.train + self.validation + self.test - 1) > 1e-9:
            raise ValueError("shares of splits that sum to 1")
        return self

    def shares(self) -> dict[str, float]:
        """The shares by the splits' names; a split with a share of 0 is none."""
        every = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: share for name, share in every.items() if share > 0}


class IntakeOptions(Options):
    """How a folder of medical images becomes an image set."""

    runtime_only: ClassVar[frozenset[str]] = frozenset({"workers"})

    format: Literal["png", "jpeg"] = "png"
    """What pictures are written as: 8-bit PNG loses nothing, JPEG is smaller."""
    compression: Annotated[int, Field(ge=0, le=9)] = 1
    """zlib's level for PNG; 1 is four times as fast as 6 and some 10 % larger."""
    quality: Annotated[int, Field(ge=50, le=95)] = 95
    """Of JPEG."""
    keep_16_bit: bool = Field(default=False, exclude_if=lambda kept: not kept)
    """Keep the 16-bit pixels, too, of grey pictures whose source has more than 8 bits: DICOM, NIfTI, 16-bit PNG and TIFF. The
    review page's window and level work on them; models see the 8-bit pictures alone. A picture of 1024 × 1024 pixels takes up
    to 2 MiB more; where it is looked at for text, its 16 bits are too, which takes two more looks."""
    frames: FrameChoice = "all"
    """Which frames or slices: all, the middle one, every `step`-th, or their maximum intensity projection. Of a file of
    several pictures or pages, and of the single-frame DICOM files of a series that lie in one stack, in order of their
    positions."""
    step: PositiveInt = 1
    """Every how many frames or slices, with `frames: every`."""
    window: WindowChoice = "auto"
    """Grey levels shown of CT: the file's own window, that of a body region, or by what the file says of itself."""
    plane: Plane = "acquired"
    """In which plane NIfTI volumes are cut; acquired: across their widest steps; all: the three of them."""
    time_point: NonNegativeInt = 0
    """Which volume of a NIfTI series in time is read; 0 is the first."""
    nifti_window: tuple[float, PositiveFloat] | None = None
    """Centre and width of the values shown of NIfTI, in the volume's own units, such as 40 400 for an abdomen in CT; without
    it black and white are the percentiles 0.5 and 99.5 of the volume."""
    tile: Annotated[int, Field(ge=64, le=4096)] = 512
    """Width and height of the tiles of a pathology slide, in pixels."""
    level: NonNegativeInt = 0
    """Which level of a slide's pyramid is cut into tiles; 0 is the sharpest."""
    tissue: Share = 0.25
    """Minimum share of tissue in a slide's tile for the tile to be kept; 0 keeps every tile."""
    text: Literal["mask", "quarantine"] = "mask"
    """What is done where text is found in the pixels: black it out, or leave the picture out."""
    look_for_text: Literal["rules", "doubtful", "all"] = "doubtful"
    """rules: by the file's word only, what may hold text is left out; doubtful: read all pictures but CT and MR slices
    without a mark of text; all: read those too."""
    keep_markers: bool = False
    """Leave markers such as L, R, PA and scale digits in the picture."""
    enlarge_up_to: NonNegativeInt = 1600
    """Pictures whose longer side is up to this many pixels are also read for text at twice their size, which finds letters
    under 14 pixels; a greater number takes four times as long for larger pictures."""
    smallest: PositiveInt = 32
    """Shorter side in pixels below which a picture is left out as tiny."""
    largest: PositiveInt = 64_000_000
    """Pixels above which a picture is left out as huge."""
    contrast: Annotated[int, Field(ge=0, le=255)] = 4
    """Grey levels that the middle 99 % of the pixels must span, or the picture is left out as near-constant."""
    near_duplicates: Literal["mark", "drop", "ignore"] = "mark"
    """Pictures that nearly are an earlier one: name that one, leave them out, or do not look."""
    splits: SplitShares = SplitShares(train=0.8, validation=0.1, test=0.1)
    """Share of each split; whole patients go to one side, so small sets come near these shares only roughly."""
    links: Literal["inside", "anywhere"] = "inside"
    """Where links in the folder may lead; those that lead out of it are left out and counted, or followed with anywhere."""
    unnamed: Literal["folder", "file"] = "folder"
    """Whose files are that name neither patient nor study: one patient's for each folder, or each its own patient's. Files at
    the top of the source are always their own."""
    seconds: PositiveFloat = 10.0
    """Longest time on a core for the next picture of a file, and one second more for every 16 MiB of it; then it is left out. A
    file for which nothing runs, such as one on a disk that does not answer, is given three times as long."""
    memory: PositiveFloat = 4.0
    """GiB that a worker may take beyond its start; a file that needs more is left out."""
    chunk: PositiveInt = 64
    """Files that are kept as done at a time; a kill loses at most one such chunk a worker."""
    workers: PositiveInt | None = None
    """Processes at work; one for each core when absent."""
