"""Where a run's data and its first model come from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stllava.config.base import Options


class PhantomData(Options):
    """Synthetic phantoms with known truth, generated from the run's seed."""

    kind: Literal["phantom"] = "phantom"
    """Synthetic radiology phantoms."""
    labelled: PositiveInt = 100
    """Images with conversations for sft."""
    unlabelled: PositiveInt = 800
    """Images the policy asks itself about."""
    validation: PositiveInt = 80
    """Held-out images that choose the best round."""
    test: PositiveInt = 200
    """Held-out images that measure it."""
    size: Annotated[int, Field(ge=32)] = 128
    """Width and height in pixels."""


class VqaRadData(Options):
    """VQA-RAD in its public JSON: train.json, test.json and images/."""

    kind: Literal["vqa-rad"]
    """The VQA-RAD folder."""
    folder: Path
    """Folder that holds train.json, test.json and images/."""
    split: Literal["standard", "image-disjoint"] = "standard"
    """standard: nearly all test images are training images too; image-disjoint: the 111 training images that are not."""
    labelled: PositiveInt | Literal["all"] = 60
    """Training images whose questions and answers sft sees; all: every one, and none is left to ask about."""
    validation: PositiveInt = 30
    """Training images held out to choose the best round."""


class FilesData(Options):
    """Your own images, conversations and samples."""

    kind: Literal["files"]
    """Your own files."""
    images: Path
    """The image root: every image path is relative to it and stays inside it."""
    conversations: Path
    """LLaVA-style JSON, or JSONL of Conversation records, for sft."""
    validation: Path
    """JSONL of Sample records that choose the best round."""
    benchmarks: dict[str, Path] = Field(default={})
    """JSONL of Sample records by name, measured for every policy."""
    references: Path | None = None
    """JSONL of Sample records the reference expert may look at; never a benchmark."""
    unlabelled: Path | None = None
    """Folder inside the image root to ask about; the whole root when absent."""
    captions: Path | None = None
    """LLaVA-style JSON, or JSONL of Conversation records, that the run's `align` learns from."""


Data = Annotated[PhantomData | VqaRadData | FilesData, Field(discriminator="kind")]


class SmallModel(Options):
    """The small LLaVA that is built from nothing, with a tokenizer trained on the labelled conversations."""

    image_size: PositiveInt = 64
    """Width and height the processor makes of an image, in pixels."""
    patch_size: PositiveInt = 8
    """Width and height of a patch; each becomes one image token."""
    vision_width: PositiveInt = 128
    """Hidden size of the vision tower."""
    vision_layers: PositiveInt = 4
    """Layers of the vision tower."""
    language_width: PositiveInt = 128
    """Hidden size of the language model."""
    language_layers: PositiveInt = 4
    """Layers of the language model."""
    heads: PositiveInt = 4
    """Attention heads of both."""
    vocabulary: Annotated[int, Field(ge=300)] = 1024
    """Most tokens of the byte-level BPE vocabulary."""
    context: PositiveInt = 1024
    """Longest sequence in tokens."""
