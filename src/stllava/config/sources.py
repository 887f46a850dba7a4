"""Where a run's data and its first model come from.

Where files lie may change when work is resumed: what is in them is among a stage's inputs.
"""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stllava.config.base import NamedList, NamedModel, NamedPath, Options


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

    runtime_only = frozenset({"folder"})

    kind: Literal["vqa-rad"]
    """The VQA-RAD folder."""
    folder: NamedPath
    """Folder that holds train.json, test.json and images/."""
    split: Literal["standard", "image-disjoint"] = "standard"
    """standard: nearly all test images are training images too; image-disjoint: the 111 training images that are not."""
    labelled: PositiveInt | Literal["all"] = 60
    """Training images whose questions and answers sft sees; all: every one, and none is left to ask about."""
    validation: PositiveInt = 30
    """Training images held out to choose the best round."""


class FilesData(Options):
    """Your own images, conversations and samples."""

    runtime_only = frozenset({"images", "conversations", "validation", "benchmarks", "references", "unlabelled", "captions"})

    kind: Literal["files"]
    """Your own files."""
    images: NamedPath
    """The image root: every image path is relative to it and stays inside it."""
    conversations: NamedPath
    """What sft learns: JSONL of Conversation records, or rows of turns or of a question and its answer, as LLaVA and others
    write them."""
    validation: NamedPath
    """What chooses the best round: JSONL of Sample records, or a table (CSV, TSV, JSON) with image, question, answer."""
    benchmarks: dict[str, NamedPath] = Field(default={})
    """Files of samples by name, in the same forms, measured for every policy."""
    references: NamedPath | None = None
    """Samples, in the same forms, that the reference expert may look at; never a benchmark."""
    unlabelled: NamedList | None = None
    """What to ask about: a folder inside the image root, or a list of images (a path a line, CSV or JSON); the whole root
    when absent."""
    captions: NamedPath | None = None
    """What the run's `align` learns from, in the same forms as the conversations."""
    single_questions: bool = True
    """Also learn every question of a conversation about images by itself, beside the whole: asked later, it comes alone."""


class ImportedData(Options):
    """An image set that `stllava import images` wrote, with the labels you have; its own splits are used."""

    runtime_only = frozenset({"folder", "labels"})

    kind: Literal["imported"]
    """An imported image set."""
    folder: NamedPath
    """The set's folder."""
    labels: NamedPath | None = None
    """Your questions and answers: a table (CSV, TSV, JSON) with image (path in the set), question, answer."""
    headers: bool = True
    """Ask also what the headers say: modality, plane or view, body part, side."""
    labelled: PositiveInt | Literal["all"] = 60
    """Training pictures whose questions and answers sft sees, those with labels of yours first; the rest is asked about."""


Data = Annotated[PhantomData | VqaRadData | FilesData | ImportedData, Field(discriminator="kind")]


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


class ComposeOptions(Options):
    """A new LLaVA from a vision tower, a language model and a new projector between them."""

    vision: NamedModel
    """Folder or hub name of a CLIP, SigLIP or DINOv2, with its image processor; a whole CLIP or SigLIP gives its tower."""
    language: NamedModel
    """Folder or hub name of a causal language model, with its tokenizer."""
    projector: Literal["mlp", "prototypes", "prototypes-paper"] = "mlp"
    """Two layers as in LLaVA-1.5, or a prototype extractor by the published formula or the paper's."""
    prototypes: PositiveInt = 256
    """Prototypes of an extractor; fewer than image tokens, or they summarise nothing."""
    pool: Literal[1, 2] = 1
    """Side of the squares of image tokens that become one before the projector; 2 leaves a quarter."""
    feature_layer: int = -2
    """Which of the tower's hidden states is shown; the last serves the tower's own task, the one before it carries over."""
    image_size: PositiveInt | None = None
    """Width and height the processor makes of an image, in pixels; the tower's own when absent. Only DINOv2 takes another."""
    pad: bool = True
    """Pad an image to a square with the tower's mean colour, as the paper does; else it is stretched to one."""
