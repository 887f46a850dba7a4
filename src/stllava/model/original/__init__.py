"""`stllava import model`: a checkpoint in the original's layout becomes a transformers 5 folder.

Reads what LLaVA 1.5, LLaVA-Med 1.5, SQ-LLaVA and STLLaVA-Med write:

    whole       config.json, tokenizer, weights in shards or one file, with or without the vision tower
    projector   config.json, mm_projector.bin; needs `base`
    LoRA        config.json, adapter_config.json, adapter_model.*, non_lora_trainables.bin, perhaps Vit-lora/; needs `base`

and from elsewhere what the checkpoint lacks: CLIP (`vision`), LoRA of the tower (`vision_adapter`), the `projector`.
Writes a folder that `load_policy` and the Auto classes load; its manifest says what was used. All weights get the
precision of the language model's and are in memory once.
"""

from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from stllava.config import Options
from stllava.errors import StllavaError
from stllava.model.original.folders import LANGUAGES, Parts, find_parts
from stllava.model.original.imported_processor import IMAGE, read_processor
from stllava.model.original.weights import (
    EMBEDDING,
    HEAD,
    PROJECTOR,
    TOWER,
    first,
    merge_lora,
    old_name,
    read_tensors,
    weight_files,
)
from stllava.model.projector import StllavaConfig, StllavaForConditionalGeneration
from stllava.records import Manifest
from stllava.store import MANIFEST, Existing, Stage, file_hash, locked

ROWS = 64
"""Vocabularies are filled up to a multiple of this, as matrix products like it."""
PROTOTYPES, STEPS = 256, 2
"""The published code builds these, whatever its configuration says."""
LAYERS = {
    "mlp": frozenset({"0", "2"}),
    "prototypes": frozenset({"sim_alpha", "sim_beta", "c", "v", "f", "ln_1", "mlp"}),
}
"""What the original's projectors consist of, mlp2x_gelu and cluster."""


def import_checkpoint(
    source: Path,
    *,
    to: Path,
    base: Path | None = None,
    vision: Path | None = None,
    vision_adapter: Path | None = None,
    projector: Path | None = None,
    existing: Existing = "resume",
) -> Manifest:
    """Write the checkpoint `source` as a transformers folder into `to`; raises StllavaError for what is missing or wrong.

    Args:
        source: The checkpoint: whole, or LoRA adapters, or the language model alone.
        to: The new folder.
        base: The language model that LoRA adapters or a lone projector belong to.
        vision: A CLIP folder, where the checkpoint does not hold its vision tower.
        vision_adapter: The vision tower's LoRA adapters.
        projector: The projector's file or folder, where it lies apart.
        existing: What to do with output that is there: resume it, replace it, or end in an error.

    Raises:
        StllavaError: Where a part is missing, is left over or does not fit.
    """
    parts = find_parts(source, base=base, vision=vision, vision_adapter=vision_adapter, projector=projector)
    with locked(to, source, base, vision):
        inputs = {f"{part}: {path.parent.name}/{path.name}": file_hash(path) for part, path in parts.files()}
        # Built before anything is written, so that what is given after a refusal is not another import to `to`.
        built = None if (to / MANIFEST).is_file() else build(parts)
        stage = Stage("import", to, Options(), inputs=inputs, existing=existing)
        if stage.manifest is not None:
            return stage.manifest
        model, processor, notes = built if built is not None else build(parts)
        model.save_pretrained(to)
        processor.save_pretrained(to)
        parameters = float(sum(parameter.numel() for parameter in model.parameters()))
        return stage.finish(counts_in=len(inputs), counts_out=1, measures={"parameters": parameters}, notes=notes)


def build(parts: Parts) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, list[str]]:
    """The model, its processor and where its weights come from."""
    tensors, notes = gather(parts)
    config, language = parts.config, LANGUAGES[parts.config.model_type]
    side, patch = cast(int, parts.tower.image_size), cast(int, parts.tower.patch_size)
    strategy: Literal["default", "full"] = "default" if config.mm_vision_select_feature == "patch" else "full"
    processor = read_processor(
        parts.language,
        parts.vision if parts.vision is not None else parts.language,
        style="mistral" if language.model_type == "mistral" else "vicuna",
        marks=config.mm_use_im_start_end,
        pad=config.image_aspect_ratio == "pad",
        side=side,
        patch=patch,
        strategy=strategy,
    )
    ids = {f"{name}_token_id": getattr(processor.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    rows = widen(tensors, least=len(processor.tokenizer))
    arguments: dict[str, Any] = {
        "text_config": language(vocab_size=rows, **parts.shape, **ids),
        "vision_config": parts.tower,
        "image_token_index": processor.tokenizer.convert_tokens_to_ids(IMAGE),
        "image_seq_length": (side // patch) ** 2 + (strategy == "full"),
        "vision_feature_layer": config.mm_vision_select_layer,
        "vision_feature_select_strategy": strategy,
    }
    with torch.device("meta"):
        if has_prototypes(parts, tensors):
            shape = StllavaConfig(projector="prototypes", prototypes=PROTOTYPES, prototype_steps=STEPS, **arguments)
            model: LlavaForConditionalGeneration = StllavaForConditionalGeneration(shape)
        else:
            model = LlavaForConditionalGeneration(LlavaConfig(**arguments))
    fill(model, tensors, source=parts.source)
    model.generation_config = GenerationConfig(**ids)
    return model, processor, notes


def gather(parts: Parts) -> tuple[dict[str, Tensor], list[str]]:
    """All weights by the original's names, adapters merged, and sentences on where they come from."""
    tensors = read_tensors(weight_files(parts.language))
    notes = [f"Language model: {parts.language}."]
    for path in parts.projectors:
        tensors |= read_tensors([path])
        notes.append(f"Projector: {path}.")
    if any(name.startswith(TOWER) for name in tensors) or parts.vision is None:
        notes.append(
            "Vision tower: the checkpoint's own" + (f", shaped as {parts.vision}." if parts.vision is not None else ".")
        )
    else:
        tensors |= read_tensors(weight_files(parts.vision))
        notes.append(f"Vision tower: {parts.vision}.")
    for folder, tower in ((parts.adapter, False), (parts.vision_adapter, True)):
        if folder is not None:
            notes.append(f"LoRA merged into {merge_lora(tensors, folder, tower=tower)} weights: {folder}.")
    return tensors, notes


def has_prototypes(parts: Parts, tensors: dict[str, Tensor]) -> bool:
    """Whether the projector is the prototype extractor; one that is neither that nor the two-layer MLP is refused."""
    found = {name.removeprefix(PROJECTOR).partition(".")[0] for name in tensors if name.startswith(PROJECTOR)}
    if not found:
        raise StllavaError(
            f"{parts.source} holds no projector ({PROJECTOR}…)",
            expected="one in the checkpoint or beside it",
            remedy="Give mm_projector.bin, or its folder, as projector.",
        )
    kind = next((kind for kind, layers in LAYERS.items() if found <= layers), None)
    if kind is None:
        name = "linear, as in LLaVA-Med 1.0" if found == {"weight", "bias"} else f"made of {first(sorted(found))}"
        raise StllavaError(
            f"the projector of {parts.source} is {name}",
            expected="mlp2x_gelu or cluster",
            remedy="Such a model cannot be imported; LLaVA-Med 1.5 and LLaVA 1.5 can.",
        )
    return kind == "prototypes"


def widen(tensors: dict[str, Tensor], *, least: int) -> int:
    """Give both ends of the language model rows for at least `least` tokens, the mean of its own; returns how many."""
    known = {name: tensors[name] for name in (EMBEDDING, HEAD) if name in tensors}
    rows = -(-max([least, *(len(weight) for weight in known.values())]) // ROWS) * ROWS
    for name, weight in known.items():
        mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
        tensors[name] = torch.cat([weight, mean.expand(rows - len(weight), -1)])
    return rows


def fill(model: LlavaForConditionalGeneration, tensors: dict[str, Tensor], *, source: Path) -> None:
    """Give a model on the meta device its weights, which leave `tensors`; what is missing, unknown or misshapen is named."""
    empty = model.state_dict()
    wanted = {old_name(name): name for name in empty}
    if model.config.tie_word_embeddings and HEAD not in tensors:
        wanted.pop(HEAD)
    faults = {
        "lacks": sorted(wanted.keys() - tensors.keys()),
        "has, which the model has not,": sorted(tensors.keys() - wanted.keys()),
        "has in another shape": sorted(
            f"{old} {tuple(tensors[old].shape)} not {tuple(empty[name].shape)}"
            for old, name in wanted.items()
            if old in tensors and tensors[old].shape != empty[name].shape
        ),
    }
    if any(faults.values()):
        raise StllavaError(
            f"{source} " + "; ".join(f"{fault} {first(names)}" for fault, names in faults.items() if names),
            expected="the weights of the model that its configuration describes, all of them and no others",
            remedy="Download it again; what lies elsewhere is given as base, vision, vision_adapter or projector.",
        )
    precision = tensors[EMBEDDING].dtype
    model.load_state_dict({name: tensors.pop(old).to(precision) for old, name in wanted.items()}, strict=False, assign=True)
    model.tie_weights()
