"""Which group of weights a weight of a vision-language model belongs to: each has a learning rate of its own.

A weight is placed by what its module is for, not by its name, so that the models of tomorrow are placed too: `language` is
the decoder that transformers names, with its embeddings and its head; `vision` is what takes pixels; `other` what takes
sound, or draws, and never learns; what lies between them carries image features to the language model and is the `projector`.
Names count only inside a vision tower, where some families keep their projector (model/families.py). A model whose groups
cannot be told apart so is refused. `tests/test_groups.py` does this for every image-text-to-text class that transformers has.
"""

import sys
from typing import TYPE_CHECKING, Literal, TypeGuard, cast

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from stllava.errors import StllavaError
from stllava.model.families import PROJECTOR

if TYPE_CHECKING:
    from peft import PeftModel

Group = Literal["language", "projector", "vision", "other"]
GROUPS: tuple[Group, ...] = ("language", "projector", "vision", "other")
PIXELS = frozenset({"pixel_values", "pixel_values_videos", "patch_embeds", "flattened_patches"})
SOUND = frozenset({"input_features", "input_values"})
"""What transformers calls the main input of a model that sees, and of one that hears."""
INSIDE = frozenset({*PROJECTOR, "patch_merger", "merger_list", "downsample"})
"""Names of the modules right inside a vision tower that bring its features to the width of the language model."""
ASIDE = ("audio", "generation_")
"""What stands in names of what lies beside towers and decoder and is not on the way from an image to a word."""


def is_adapted(model: nn.Module) -> "TypeGuard[PeftModel]":
    """Whether adapters of peft stand on the model; peft, which takes bitsandbytes along, is not imported to find out."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


class Groups:
    """The group of every weight of one model, also once adapters are put on it."""

    def __init__(self, model: nn.Module) -> None:
        """Look at a model of transformers, or at one with adapters; StllavaError where its groups cannot be told apart."""
        plain = cast(PreTrainedModel, model.get_base_model() if is_adapted(model) else model)
        names = {id(module): name for name, module in plain.named_modules()}
        self._places: dict[str, Group] = {}
        language = _language(plain)
        speaks = {id(module) for module in language.modules()}
        seeing = _takers(plain, ("image", "video"), PIXELS)
        if plain.config.is_encoder_decoder or _is_mixed(language) or any(id(module) in speaks for module in seeing):
            raise _unplaced(plain, "keeps what sees and what speaks in one")
        for module in (language, plain.get_input_embeddings(), plain.get_output_embeddings()):
            if module is not None:
                self._places[names[id(module)]] = "language"
        for module in _takers(plain, ("audio",), SOUND):
            self._places[names[id(module)]] = "other"
        for module in seeing:
            self._places[names[id(module)]] = "vision"
        layers = [name for name, module in plain.named_modules() if isinstance(module, GradientCheckpointingLayer)]
        if not seeing and (stray := [name for name in layers if self(name) == "projector"]):
            raise _unplaced(plain, f"has layers ({stray[0]}, …) of which nothing says whether they take pixels")

    def __call__(self, name: str) -> Group:
        """The group of a parameter or module, by its name in the model."""
        parts = name.removeprefix("base_model.model.").split(".")
        for length in range(len(parts), 0, -1):
            group = self._places.get(".".join(parts[:length]))
            if group == "vision" and parts[length : length + 1] and parts[length] in INSIDE:
                return "projector"
            if group is not None:
                return group
        return "other" if any(word in part for part in parts for word in ASIDE) else "projector"


def _language(model: PreTrainedModel) -> nn.Module:
    """The decoder with what is of the same configuration around it, such as the model that adds its head."""
    modules = dict(model.named_modules())
    decoder = model.get_decoder()
    (name,) = [name for name, module in modules.items() if module is decoder]
    config = decoder.config if isinstance(decoder, PreTrainedModel) else None
    while "." in name and config is not None:
        outer = modules[name.rpartition(".")[0]]
        if not isinstance(outer, PreTrainedModel) or outer.config is not config:
            break
        name, decoder = name.rpartition(".")[0], outer
    return cast(nn.Module, decoder)


def _is_mixed(language: nn.Module) -> bool:
    """Whether the decoder holds models of other configurations than its own."""
    models = [module for module in language.modules() if isinstance(module, PreTrainedModel)]
    return any(module.config is not models[0].config for module in models)


def _takers(model: PreTrainedModel, modalities: tuple[str, ...], inputs: frozenset[str]) -> list[nn.Module]:
    """The modules that take these inputs: those that transformers names, and the models inside the model that say so."""
    named = [model.get_encoder(modality=modality) for modality in modalities]
    wholes = {id(model), id(model.base_model)}
    found = [module for module in named if isinstance(module, nn.Module) and id(module) not in wholes]
    models = [module for module in model.modules() if isinstance(module, PreTrainedModel) and id(module) not in wholes]
    return found + [module for module in models if module.main_input_name in inputs]


def _unplaced(model: PreTrainedModel, fault: str) -> StllavaError:
    return StllavaError(
        f"{type(model).__name__} {fault}, so its weights cannot be told apart as language, projector and vision",
        expected="a language model with a vision tower beside it, as most image-text-to-text models of transformers have",
        remedy="Train another model; this one can be evaluated.",
    )
