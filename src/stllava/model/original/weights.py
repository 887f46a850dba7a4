"""Names and files of the original's checkpoints, as LLaVA, LLaVA-Med, SQ-LLaVA and STLLaVA-Med write them.

Reads safetensors and pickles (weights only: a pickle that wants to run code is refused) and gives tensors by the names
that they have in a whole checkpoint of the original; merges LoRA into them; says what the same tensor is called in
transformers 5. Writes nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import sqrt
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stllava.errors import StllavaError
from stllava.model.model_folder import check_pointer, read_shards

TOWER, PROJECTOR = "model.vision_tower.vision_tower.vision_model.", "model.mm_projector."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

OLD_TO_NEW = (
    # a whole checkpoint of the original   LlavaForConditionalGeneration; the first line that fits counts
    (TOWER, "model.vision_tower."),
    (f"{PROJECTOR}0.", "model.multi_modal_projector.linear_1."),
    (f"{PROJECTOR}2.", "model.multi_modal_projector.linear_2."),
    (PROJECTOR, "model.multi_modal_projector."),
    ("model.", "model.language_model."),
    ("lm_head.", "lm_head."),
)
SHORT_TO_WHOLE = (
    # in a file of its own                 in a whole checkpoint; applied one after the other
    ("base_model.model.", ""),  # peft
    ("vision_tower.vision_model.", TOWER),  # LoRA of the tower
    ("vision_model.", TOWER),  # CLIP
    ("mm_projector.", PROJECTOR),
)
COMPUTED = (".rotary_emb.inv_freq", ".embeddings.position_ids")
"""Endings of buffers that old versions of transformers stored and today's compute."""
CLIP_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
"""Beginnings of what a whole CLIP holds beside its vision tower."""
WHOLE = ("model.safetensors", "pytorch_model.bin")
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
NAMED = 10


class Adapter(BaseModel):
    """adapter_config.json of peft: how large LoRA's product counts, and what must be off for it to be plain LoRA."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    r: int
    lora_alpha: float
    use_rslora: bool = False
    bias: str = "none"
    fan_in_fan_out: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, JsonValue] = {}
    alpha_pattern: dict[str, JsonValue] = {}
    modules_to_save: list[str] | None = None

    @property
    def scale(self) -> float:
        """What LoRA's product is multiplied by."""
        return self.lora_alpha / (sqrt(self.r) if self.use_rslora else self.r)


def old_name(new: str) -> str:
    """What the original calls a tensor of `LlavaForConditionalGeneration`."""
    old, now = next((old, now) for old, now in OLD_TO_NEW if new.startswith(now))
    return old + new.removeprefix(now)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of a model's weights, safetensors before pickles; none when there are none, an absent shard is refused."""
    for name in WHOLE:
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = read_shards(index)
            absent = [shard for shard in shards if not (folder / shard).is_file()]
            if absent:
                raise StllavaError(
                    f"{folder} lacks {first(absent)} of {len(shards)} shards that {index.name} names",
                    expected="every shard",
                    remedy="Download the folder again, or the absent files.",
                )
            return tuple(folder / shard for shard in shards)
        if (folder / name).is_file():
            return (folder / name,)
    return ()


def adapter_file(folder: Path) -> Path:
    """The file of an adapter's weights."""
    found = [folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()]
    if not found:
        raise StllavaError(
            f"{folder} has {ADAPTER} and no weights", expected=" or ".join(ADAPTER_WEIGHTS), remedy="Download the folder again."
        )
    return found[0]


def read_tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of all files by their names in a whole checkpoint, one file read after the other."""
    return {_whole_name(name): tensor for path in files for name, tensor in _read(path) if _is_weight(name)}


def merge_lora(tensors: dict[str, Tensor], folder: Path, *, tower: bool) -> int:
    """Add LoRA's products to the weights of the tower or of the rest, rounded once; returns how many weights.

    The original's adapter of a language model trained beside one of the tower holds a copy of that, without its scale,
    which is left out.
    """
    scale = _read_adapter(folder).scale
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors([adapter_file(folder)]).items():
        target, found, half = name.partition(".lora_")
        if not found:
            raise _unusable(folder, f"holds {name}, which is no half of a LoRA")
        if name.startswith(TOWER) == tower:
            halves.setdefault(f"{target}.weight", {})[half[0]] = tensor
    alone = sorted(target for target, pair in halves.items() if pair.keys() != {"A", "B"})
    unknown = sorted(halves.keys() - tensors.keys())
    if alone or unknown or not halves:
        fault = f"half a LoRA for {first(alone)}" if alone else f"LoRA for {first(unknown)}, which the base lacks"
        raise _unusable(
            folder, f"holds {fault if halves else 'no LoRA for ' + ('the tower' if tower else 'the language model')}"
        )
    for target, pair in halves.items():
        weight, product = tensors[target], pair["B"].float() @ pair["A"].float()
        if product.shape != weight.shape:
            raise _unusable(folder, f"holds LoRA of shape {tuple(product.shape)} for {target} of shape {tuple(weight.shape)}")
        tensors[target] = (weight.float() + scale * product).to(weight.dtype)
    return len(halves)


def adapts_tower(folder: Path) -> bool:
    """Whether an adapter holds LoRA of the vision tower."""
    return any(name.startswith(TOWER) for name in read_tensors([adapter_file(folder)]))


def first(names: Sequence[str]) -> str:
    """The first names and how many there are."""
    return ", ".join(names[:NAMED]) + (f", … ({len(names)} in all)" if len(names) > NAMED else "")


def _read_adapter(folder: Path) -> Adapter:
    try:
        adapter = Adapter.model_validate_json((folder / ADAPTER).read_bytes())
    except ValidationError as error:
        raise _unusable(folder, f"has a wrong {ADAPTER}: {error.errors()[0]['msg']} at {error.errors()[0]['loc']}") from None
    plain = Adapter(r=adapter.r, lora_alpha=adapter.lora_alpha, use_rslora=adapter.use_rslora)
    other = [name for name, value in adapter if value != getattr(plain, name)]
    if other:
        raise _unusable(folder, f"has {', '.join(other)} set in {ADAPTER}")
    return adapter


def _unusable(folder: Path, fault: str) -> StllavaError:
    return StllavaError(
        f"{folder} {fault}",
        expected="plain LoRA on weights of the base model",
        remedy="Check that adapter and base belong together, or merge the adapter with peft.",
    )


def _whole_name(name: str) -> str:
    for short, whole in SHORT_TO_WHOLE:
        if name.startswith(short):
            name = whole + name.removeprefix(short)
    return name


def _is_weight(name: str) -> bool:
    return not name.endswith(COMPUTED) and not name.startswith(CLIP_TEXT)


def _read(path: Path) -> Iterator[tuple[str, Tensor]]:
    check_pointer(path)
    try:
        found: object = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
        )
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise StllavaError(
            f"{path} is not read: {' '.join(str(error).split())[:200]}",
            expected="a whole file of tensors and nothing else (a pickle that wants to run code is refused)",
            remedy="Download the file again from a source that you trust.",
        ) from error
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise StllavaError(f"{path} holds no state dict", expected="tensors by name", remedy="Name the file of the weights.")
    yield from found.items()
