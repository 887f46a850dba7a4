"""Of which folders and files an imported model is made, found from what lies in them.

Reads configurations and the names of files; writes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import CLIPVisionConfig, LlamaConfig, MistralConfig

from stllava.errors import StllavaError
from stllava.model.model_folder import read_settings
from stllava.model.original.imported_processor import PREPROCESSOR, TOKENIZER_FILES
from stllava.model.original.weights import ADAPTER, adapter_file, adapts_tower, weight_files

CONFIG, TOWER_LORA = "config.json", "Vit-lora"
PROJECTORS = ("non_lora_trainables.bin", "mm_projector.bin", "mm_projector.safetensors")
LANGUAGES: dict[str, type[LlamaConfig] | type[MistralConfig]] = {
    "llava": LlamaConfig,
    "llava_llama": LlamaConfig,
    "llama": LlamaConfig,
    "llava_mistral": MistralConfig,
    "mistral": MistralConfig,
}
LANGUAGE_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "attention_bias", "mlp_bias"),
    *("sliding_window", "tie_word_embeddings"),
)
TOWER_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size"),
    *("patch_size", "hidden_act", "layer_norm_eps"),
)
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
TOWERS = {
    "openai/clip-vit-large-patch14-336": {**LARGE, "image_size": 336},
    "openai/clip-vit-large-patch14": {**LARGE, "image_size": 224},
}
"""Towers that the original names: a checkpoint may hold the weights of one, and never holds its configuration."""


class OldConfig(BaseModel):
    """What the original's config.json says beside the shape of the language model."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())
    model_type: str
    mm_vision_tower: str | None = None
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: Literal["patch", "cls_patch"] = "patch"
    mm_use_im_start_end: bool = False
    image_aspect_ratio: Literal["pad", "square"] | None = None


@dataclass(frozen=True)
class Parts:
    """Where everything lies that the model is made of."""

    source: Path
    """The folder that is imported."""
    language: Path
    """Folder of the language model's weights and tokenizer: the source or its base."""
    config: OldConfig
    shape: dict[str, Any]
    """Of the language model, in the words of its configuration class."""
    tower: CLIPVisionConfig
    vision: Path | None
    """Folder of CLIP."""
    projectors: tuple[Path, ...]
    """Files whose weights replace those of the language model's folder; later ones replace earlier."""
    adapter: Path | None
    vision_adapter: Path | None

    def files(self) -> Iterator[tuple[str, Path]]:
        """Every file that is used, with the part that it belongs to."""
        for part, folder, names in (
            ("source", self.source, (CONFIG,)),
            ("language model", self.language, (CONFIG, PREPROCESSOR, *TOKENIZER_FILES)),
            ("vision tower", self.vision, (CONFIG, PREPROCESSOR)),
        ):
            if folder is not None:
                yield from ((part, folder / name) for name in names if (folder / name).is_file())
        yield from (("language model", path) for path in weight_files(self.language))
        if self.vision is not None:
            yield from (("vision tower", path) for path in weight_files(self.vision))
        yield from (("projector", path) for path in self.projectors)
        for part, folder in (("LoRA", self.adapter), ("LoRA of the tower", self.vision_adapter)):
            if folder is not None:
                yield from ((part, path) for path in (folder / ADAPTER, adapter_file(folder)))


def find_parts(
    source: Path, *, base: Path | None, vision: Path | None, vision_adapter: Path | None, projector: Path | None
) -> Parts:
    """What each folder is for; raises StllavaError where one is missing, too much or of another kind."""
    given = {"source": source, "base": base, "vision": vision, "vision_adapter": vision_adapter, "projector": projector}
    absent = [f"{name} {path}" for name, path in given.items() if path is not None and not path.exists()]
    if absent:
        raise StllavaError(f"there is no {', no '.join(absent)}", expected="existing folders", remedy="Check the paths.")
    language = _language(source, base)
    values = _read_json(language / CONFIG)
    if source != language and (source / CONFIG).is_file():
        values |= _read_json(source / CONFIG)
    config = _old_config(source, values)
    if vision is None and config.mm_vision_tower is not None and (source / config.mm_vision_tower).is_dir():
        vision = source / config.mm_vision_tower
    adapter = source if (source / ADAPTER).is_file() else None
    if vision_adapter is None and (source / TOWER_LORA).is_dir():
        vision_adapter = source / TOWER_LORA
    if adapter is not None and vision_adapter is None and adapts_tower(adapter):
        raise StllavaError(
            f"{adapter} was trained beside LoRA of the vision tower",
            expected=f"the folder of that, which the original names {TOWER_LORA}",
            remedy="Give it as vision_adapter.",
        )
    beside = [source / name for name in PROJECTORS if (source / name).is_file()]
    return Parts(
        source=source,
        language=language,
        config=config,
        shape={name: values[name] for name in LANGUAGE_KEYS if name in values},
        tower=CLIPVisionConfig(**_tower_shape(config, vision)),
        vision=vision,
        projectors=(*beside, *([_projector(projector)] if projector is not None else [])),
        adapter=adapter,
        vision_adapter=vision_adapter,
    )


def _language(source: Path, base: Path | None) -> Path:
    """The folder that holds the language model."""
    whole = bool(weight_files(source))
    if whole and base is not None:
        raise StllavaError(
            f"{source} is a whole model, and a base {base} is given",
            expected="a base where the checkpoint is LoRA or a projector",
            remedy="Leave the base away.",
        )
    if not whole and base is None:
        raise StllavaError(
            f"{source} holds no language model",
            expected="its weights, or the base that LoRA or a projector was trained on",
            remedy="Give the base, or download the folder again.",
        )
    language = source if base is None else base
    if not weight_files(language):
        raise StllavaError(
            f"{language} holds no weights", expected="the language model of the base", remedy="Give the folder that has them."
        )
    return language


def _old_config(source: Path, values: dict[str, Any]) -> OldConfig:
    """The original's words; raises StllavaError for a model of another kind."""
    if "text_config" in values:
        raise StllavaError(
            f"{source} is in today's layout", expected="the original's layout", remedy="Use it as it is, it needs no import."
        )
    try:
        config = OldConfig.model_validate(values)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise StllavaError(
            f"{source / CONFIG}: {'.'.join(str(part) for part in wrong['loc'])} is {wrong['input']!r}",
            expected=wrong["msg"],
            remedy="Only models of the kind of LLaVA 1.5 can be imported.",
        ) from None
    if config.model_type not in LANGUAGES:
        raise StllavaError(
            f"{source / CONFIG}: model_type is {config.model_type!r}",
            expected=" or ".join(LANGUAGES),
            remedy="Only LLaVA on Llama or Mistral can be imported.",
        )
    return config


def _tower_shape(config: OldConfig, vision: Path | None) -> dict[str, Any]:
    """The vision tower's shape, from its folder or by its name."""
    if vision is not None:
        if (vision / ADAPTER).is_file():
            raise StllavaError(
                f"{vision} is LoRA of a vision tower",
                expected="CLIP's own folder as vision",
                remedy="Give it as vision_adapter, and the CLIP that it was trained on as vision.",
            )
        values = _read_json(vision / CONFIG)
        if values["model_type"] not in ("clip", "clip_vision_model"):
            raise StllavaError(
                f"{vision} is a {values['model_type']}", expected="a CLIP", remedy="Give CLIP's folder as vision."
            )
        values = values["vision_config"] if values["model_type"] == "clip" else values
        return {name: values[name] for name in TOWER_KEYS if name in values}
    if config.mm_vision_tower not in TOWERS:
        raise StllavaError(
            f"the vision tower {config.mm_vision_tower} is no folder here and none of {', '.join(TOWERS)}",
            expected="CLIP's folder, for its shape and for weights that the checkpoint lacks",
            remedy="Give it as vision.",
        )
    return dict(TOWERS[config.mm_vision_tower])


def _projector(path: Path) -> Path:
    """The file of a projector, which is given as such or as a folder."""
    if path.is_file():
        return path
    found = [path / name for name in PROJECTORS if (path / name).is_file()] or list(weight_files(path))
    if len(found) != 1:
        raise StllavaError(
            f"{path} holds {len(found)} files of projectors",
            expected=f"one of {', '.join(PROJECTORS)}",
            remedy="Name the file.",
        )
    return found[0]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise StllavaError(f"there is no {path}", expected="a model's folder with it", remedy="Download the folder again.")
    return read_settings(path)
