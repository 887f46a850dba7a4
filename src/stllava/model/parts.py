"""What a LLaVA is composed of: a vision tower and a causal language model, read from folders and checked.

Reads transformers folders, or hub names, with weights as safetensors; writes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionModel,
    Dinov2Model,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipVisionModel,
)

from stllava.config import ComposeOptions
from stllava.errors import StllavaError
from stllava.model.checkpoint import check_vocabulary, read_config, read_image_processor, read_tokenizer, read_weights, reading

PROBE = torch.arange(12)[None]
"""A text of no meaning that checks a language model."""
SPEAKER = "a causal language model with a plain head and its tokenizer, weights as safetensors"
ANOTHER = "Name another one."


@dataclass(frozen=True)
class Kind:
    """What LLaVA must know of one kind of vision tower."""

    model: type[PreTrainedModel]
    strategy: Literal["default", "full"]
    """default: the first token is the class token, which is left out; full: every token is a patch."""
    any_size: bool
    """Whether its forward fits its position table to the image, unasked."""


KINDS = {
    "clip": Kind(CLIPVisionModel, "default", any_size=False),
    "siglip": Kind(SiglipVisionModel, "full", any_size=False),
    "dinov2": Kind(Dinov2Model, "default", any_size=True),
}
"""By the `model_type` of their configuration, less `_vision_model`, with which that of a tower alone ends."""


class ImageSettings(Protocol):
    """What is taken over from a tower's image processor."""

    size: Mapping[str, int | None]
    crop_size: Mapping[str, int | None]
    do_center_crop: bool
    resample: int
    image_mean: list[float]
    image_std: list[float]


@dataclass(frozen=True)
class Tower:
    """A vision tower that was read."""

    model: PreTrainedModel
    images: ImageSettings
    kind: Kind
    side: int
    """Of an image as the tower sees it, in pixels."""

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.side // int(self.model.config.patch_size)


def read_tower(options: ComposeOptions) -> Tower:
    """The vision tower, at the size it will be used; refuses one that is unknown, or does not fit the options."""
    path = options.vision
    expected = "a vision tower with its image processor (preprocessor_config.json), weights as safetensors"
    with reading(path, expected=expected):
        config = read_config(path)
        kind = KINDS.get(config.model_type.removesuffix("_vision_model"))
        if kind is None:
            raise StllavaError(
                f"{path} is a {config.model_type}",
                expected=f"a vision tower of {', '.join(KINDS)}",
                remedy="Name another tower.",
            )
        model = read_weights(kind.model, path, dtype="auto")
        images = cast(ImageSettings, read_image_processor(path))
    own = int(model.config.image_size)
    if kind.any_size:
        shown = images.crop_size if images.do_center_crop else images.size
        own = int(shown["height"] or own)
    tower = Tower(model, images, kind, options.image_size or own)
    wrong = []
    if tower.side != own and not kind.any_size:
        wrong.append(f"image_size {tower.side}: this tower's positions are for {own} pixels")
    if tower.grid < 1 or tower.grid % options.pool:
        wrong.append(f"pool {options.pool}: images are {tower.grid} × {tower.grid} patches")
    layers = int(model.config.num_hidden_layers)
    if not -layers - 1 <= options.feature_layer <= layers:
        wrong.append(f"feature_layer {options.feature_layer}: there are {layers} layers and what goes into the first")
    if wrong:
        raise StllavaError(
            f"{path} does not fit {'; '.join(wrong)}",
            expected="options that suit the tower",
            remedy="Change them, or the tower.",
        )
    return tower


def read_language(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer; refuses another model."""
    with reading(path, expected=SPEAKER, remedy=ANOTHER):
        config = read_config(path)
        if config.get_text_config() is not config:
            raise unfit(path, f"it is a {config.model_type}, of which language is a part only")
        model = read_weights(AutoModelForCausalLM, path, dtype="auto")
        tokenizer = read_tokenizer(path)
        # Special tokens get new rows with the image token; Gemma's text models know one that they have no row for.
        check_vocabulary(path, model, tokenizer, special=False)
    if not _looks_back_only(model):
        raise unfit(path, "its tokens see the ones behind them")
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        raise unfit(path, "its head is not one matrix")
    if not tokenizer.eos_token:
        raise unfit(path, "its tokenizer has no eos_token to end a turn with")
    return model, tokenizer


@torch.no_grad()
def _looks_back_only(model: PreTrainedModel) -> bool:
    """Whether the last token leaves what the model says at the others as it is."""
    other = PROBE.clone()
    other[0, -1] = 0
    said, again = (cast(Tensor, model(tokens).logits)[:, :-1] for tokens in (PROBE, other))
    return torch.allclose(said, again, atol=1e-4)


def unfit(path: str, reason: str) -> StllavaError:
    """The error of a language model that will not do."""
    return StllavaError(
        f"{path} cannot speak for a LLaVA: {reason}",
        expected=SPEAKER,
        remedy=ANOTHER,
    )
