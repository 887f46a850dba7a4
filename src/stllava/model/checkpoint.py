"""What is read of a model: configuration, weights, tokenizer and processors, from a transformers folder or a hub name.

Two things never happen: Python code that comes with a model is not run, whatever anybody answers, and a weight that a
checkpoint lacks is not made up. Writes nothing.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)

from stllava.errors import StllavaError
from stllava.model.families import OTHERWISE
from stllava.model.model_folder import brief, check_folder, some

Dtype = torch.dtype | Literal["auto", "float32", "bfloat16"]
"""Of weights that are read: a type, its name, or that in which they are stored."""

# Where a part of a model (the text_config of a LLaVA) names code of its own, transformers has no argument to hand the refusal
# through and asks on the terminal; with no time to answer in, it refuses there too.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
ASKS_FOR_CODE = "trust_remote_code"
"""The argument that transformers' refusals name."""
HUB = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)?")
"""A name on the hub, which no path with a second slash or a leading dot can be."""
COMPUTED = re.compile(r"(?:^|\.)(?:position_ids|(?:original_)?inv_freq|cos_cached|sin_cached|masked_bias|num_batches_tracked)$")
"""Tables that old checkpoints hold and new ones lack, or the other way round: they are computed, not learned."""
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
WRAPPED = (".lora_", ".base_layer.", ".modules_to_save.", "_orig_mod.", "_fsdp_wrapped_module.")
"""What stands in names of weights that were saved with adapters, or with what a training wraps a model in."""


@contextmanager
def reading(path: Path | str, *, expected: str, remedy: str = "Check the name or folder.") -> Iterator[None]:
    """Say of whatever transformers raises over a folder or hub name that it does not load, and why."""
    _check_name(path)
    try:
        yield
    except (StllavaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if ASKS_FOR_CODE in str(error):
            raise _needs_code(path) from error
        found = f"{path} does not load" if Path(path).is_dir() else f"{path} is no folder here, and does not load from the hub"
        raise StllavaError(f"{found}: {brief(error)}", expected=expected, remedy=remedy) from error


def _check_name(path: Path | str) -> None:
    """Refuse what can only be a path and leads to no folder, which transformers would take for a name on the hub."""
    place = Path(path).expanduser()
    # Beside a folder of its owner's name, a name of the hub is far more likely a mistyped path.
    meant_for_hub = HUB.fullmatch(str(path)) is not None and len(place.parts) == 2 and not place.exists()
    if place.is_dir() or (meant_for_hub and not place.parent.is_dir()):
        return
    where = "" if place.is_absolute() else f" (looked for in {Path.cwd()})"
    raise StllavaError(
        f"{path} does not load: {'it is a file, not a folder' if place.exists() else f'there is no such folder{where}'}",
        expected="the folder of a model (config.json, safetensors, tokenizer, processor), or its name on the hub, owner/name",
        remedy="Name the folder itself; GGUF and other single files are not read." if place.exists() else "Check the path.",
    )


def _needs_code(path: Path | str) -> StllavaError:
    return StllavaError(
        f"{path} needs Python code that comes with it (auto_map in its configuration), and such code is never run here",
        expected="a model that transformers has a class for",
        remedy="Take a version of the model for transformers itself (their names often end in -hf), or a newer transformers.",
    )


def read_weights(
    kind: type[PreTrainedModel | AutoModelForCausalLM | AutoModelForImageTextToText],
    path: Path | str,
    *,
    dtype: Dtype,
) -> PreTrainedModel:
    """A model with the weights of its checkpoint, every one of them; what is missing, left over or misshapen is named.

    Where the checkpoint is of a larger model than `kind`, such as a CLIP whose vision tower is read, the rest stays behind.
    """
    if Path(path).is_dir():
        check_folder(Path(path))
    with _report() as report:
        try:
            loaded: object = kind.from_pretrained(
                str(path),
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
        except RuntimeError as error:
            if names := report.unconverted:
                raise _unfit(path, {"does not hold whole": names}) from error
            raise
    model, found = cast("tuple[PreTrainedModel, dict[str, set[Any]]]", loaded)
    is_part = type(model).__name__ not in (read_config(path).architectures or [type(model).__name__])
    faults = {
        "lacks": [name for name in found["missing_keys"] if not COMPUTED.search(name)],
        "has no place for": [] if is_part else [name for name in found["unexpected_keys"] if not _is_spare(name, model)],
        "has in another shape": [f"{name} {tuple(old)} not {tuple(new)}" for name, old, new in found["mismatched_keys"]],
    }
    if any(faults.values()):
        raise _unfit(path, faults)
    if spoilt := [name for name, weight in model.named_parameters() if not _is_finite(weight)]:
        raise StllavaError(
            f"{path} has weights that are no numbers (NaN or infinite): {some(spoilt)}",
            expected="numbers",
            remedy="Take a checkpoint from before the training that made it diverged, or fetch the folder again.",
        )
    return model


def _is_finite(weight: torch.Tensor) -> bool:
    """Whether all numbers of a weight are; codes of quantised ones always are."""
    if not weight.is_floating_point() or weight.itemsize == 1 or not weight.numel() or weight.is_meta:
        return True
    least, most = torch.aminmax(weight.detach())
    return bool(torch.isfinite(least) and torch.isfinite(most))


def _unfit(path: Path | str, faults: Mapping[str, Sequence[str]]) -> StllavaError:
    """The error of a checkpoint that is not the model's, weights named by fault."""
    every = [name for names in faults.values() for name in names]
    wrapped = any(mark in name for name in every for mark in WRAPPED)
    return StllavaError(
        f"{path} is not whole: " + "; ".join(f"it {fault} {some(sorted(names))}" for fault, names in faults.items() if names),
        expected="every weight of the model that its configuration describes, and no other: none is drawn at random",
        remedy="Merge adapters and take off wrappers, then save the model again." if wrapped else "Fetch the folder again.",
    )


def _is_spare(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight may be left over: a table that is computed today, or a layer that predicts tokens further ahead."""
    config = model.config.get_text_config().to_dict()
    ahead, layer = config.get("num_nextn_predict_layers") or 0, LAYER.search(name)
    return bool(COMPUTED.search(name)) or bool(
        ahead and layer and config["num_hidden_layers"] <= int(layer[1]) < config["num_hidden_layers"] + ahead
    )


@contextmanager
def _report() -> Iterator["_Report"]:
    """Keep transformers' table of what did not load off the terminal: all that is in it is in the error."""
    logger, report = logging.getLogger("transformers.modeling_utils"), _Report()
    logger.addFilter(report)
    try:
        yield report
    finally:
        logger.removeFilter(report)


class _Report(logging.Filter):
    """The table that transformers writes into its log."""

    def __init__(self) -> None:
        super().__init__()
        self.unconverted: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is no report; of one that is, weights that could not be put together are noted."""
        message = record.getMessage()
        rows = [line.split("|") for line in message.splitlines() if "|" in line]
        self.unconverted += [row[0].strip() for row in rows if "CONVERSION" in row[1]]
        return not any(mark in message for mark in ("LOAD REPORT", "This checkpoint seem corrupted"))


def check_way(path: Path | str) -> None:
    """Refuse what does not read its prompt, images and all, as one sequence of tokens, before its weights are read."""
    if Path(path).is_dir():
        check_folder(Path(path))
    config = read_config(path)
    encoder = "an encoder with a decoder" if config.is_encoder_decoder else None
    if way := OTHERWISE.get(config.model_type, encoder):
        raise StllavaError(
            f"{path} is {way}",
            expected="a model that reads images among the tokens of its prompt and goes on behind them",
            remedy="Take a model of a family in docs/families.md.",
        )


def check_vocabulary(
    path: Path | str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, special: bool = True
) -> None:
    """Refuse a tokenizer that knows tokens for which the model has no embedding; unless `special`, special ones may lack it."""
    rows = len(cast(torch.Tensor, model.get_input_embeddings().weight))
    aside = set() if special else {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    token, last = max(
        ((token, index) for token, index in tokenizer.get_vocab().items() if index not in aside), key=itemgetter(1)
    )
    if last >= rows:
        raise StllavaError(
            f"the tokenizer of {path} counts up to {last} ({token!r}) and the model has embeddings for 0 to {rows - 1}",
            expected="an embedding for every token",
            remedy="Take the tokenizer that belongs to the model, or give it rows for them (resize_token_embeddings).",
        )


def read_config(path: Path | str) -> PreTrainedConfig:
    """The configuration."""
    return cast(PreTrainedConfig, AutoConfig.from_pretrained(str(path), trust_remote_code=False))


def require_model(path: Path | str) -> None:
    """Refuse, before anything else is done, what transformers could not load as a model; only the configuration is read."""
    with reading(path, expected="an image-text-to-text model of transformers with its processor"):
        read_config(path)


def read_tokenizer(path: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer."""
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(path), trust_remote_code=False))


def read_image_processor(path: Path | str) -> object:
    """The image processor that needs no torchvision."""
    return AutoImageProcessor.from_pretrained(str(path), backend="pil", trust_remote_code=False)


def read_auto_processor(path: Path | str) -> object:
    """What transformers takes for the processor, which is a tokenizer where the folder has no more."""
    return AutoProcessor.from_pretrained(str(path), backend="pil", trust_remote_code=False)
