"""The model that a run starts from, where it is built: the small one, or one composed of parts."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from stllava.config.base import NamedModel, Options


class SmallModel(Options):
    """The small LLaVA that is built from nothing, with a tokenizer trained on the labelled conversations."""

    image_size: PositiveInt = 64
    """Width and height to which images are resized, in pixels."""
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
    """Maximum size of the byte-level BPE vocabulary."""
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
    """Width and height to which images are resized, in pixels; the tower's own when absent. Only DINOv2 takes another."""
    pad: bool = True
    """Pad an image to a square with the tower's mean colour, as the paper does; else it is stretched to one."""
