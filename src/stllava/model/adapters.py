"""Which parts of a model learn, how fast, and through what: full weights, LoRA, or LoRA on weights of 4 bits.

Reads and writes no files, but for the weights that adapters trained on 4 bits are merged into, which are read anew.
"""

import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel

from stllava.config import AdapterOptions, TrainingOptions
from stllava.errors import StllavaError
from stllava.model.checkpoint import read_weights
from stllava.model.device import best_device
from stllava.model.groups import GROUPS, Group, Groups, is_adapted
from stllava.model.load import Policy, load_policy, placed
from stllava.text import aligned

if TYPE_CHECKING:
    from peft import LoraModel, PeftModel

QUANTISED = "Linear4bit"
"""The class of a linear layer in 4 bits."""
STARTS_ALONE = ".lora_A."
"""LoRA's other factor starts as zeros, so in the first step none of these gets a gradient."""


def rate_of(options: TrainingOptions, group: Group) -> float:
    """Peak learning rate of a part."""
    rates = options.learning_rate
    return {"language": rates.language, "projector": rates.projector, "vision": rates.vision, "other": 0.0}[group]


def adapters_of(options: TrainingOptions) -> dict[Group, AdapterOptions]:
    """The parts that learn through adapters."""
    found: dict[Group, AdapterOptions] = {"language": options.lora.language, "vision": options.lora.vision}
    return {group: one for group, one in found.items() if one.rank > 0 and rate_of(options, group) > 0}


def in_full(options: TrainingOptions) -> set[Group]:
    """The parts that learn through all their weights."""
    return {group for group in GROUPS if rate_of(options, group) > 0} - adapters_of(options).keys()


def load_learner(path: Path | str, options: TrainingOptions) -> Policy:
    """Load the policy that is to learn, in the precision it learns in: its frozen linear layers in 4 bits, where asked."""
    dtype = torch.float32 if options.precision == "float32" else None
    if options.lora.quantise == "none":
        policy = load_policy(path, dtype=dtype)
        _refuse_quantised(path, policy)
        return policy
    # Layer by layer to where it learns: there it may not fit whole.
    policy = load_policy(path, dtype=dtype, device=torch.device("cpu"))
    _refuse_quantised(path, policy)
    quantise(policy.model, options)
    policy.model = placed(policy.model)
    return policy


def _refuse_quantised(path: Path | str, policy: Policy) -> None:
    """Refuse weights that are stored as codes: learning in full, and merging adapters, would take the codes for numbers."""
    if policy.model.config.to_dict().get("quantization_config"):
        raise StllavaError(
            f"{path} holds quantised weights (quantization_config in its configuration)",
            expected="a model with its weights as numbers, to learn from",
            remedy="Name the model it was made from; lora.quantise 4bit holds what does not learn of it in 4 bits.",
        )


@contextmanager
def no_kernels_of_the_hub() -> Iterator[None]:
    """Keep bitsandbytes, which peft and Trainer import, from fetching code from the Hub and from saying that it could not.

    It wants a kernel for computing in 4 bits on some CPUs, which gives no gradient and so is not used here.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    before, level = sys.modules.get("kernels"), logger.level
    sys.modules["kernels"] = None  # type: ignore[assignment]
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        sys.modules.pop("kernels")
        if before is not None:
            sys.modules["kernels"] = before


def quantise(model: PreTrainedModel, options: TrainingOptions) -> None:
    """Put every linear layer but the head that adapters stand on, or that is frozen, in NF4 with double quantisation."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise StllavaError(
            "bitsandbytes is not installed",
            expected="it, for lora.quantise 4bit",
            remedy="pip install 'stllava[quantised]', or set lora.quantise to none.",
        )
    with no_kernels_of_the_hub():
        from bitsandbytes.nn.modules import Linear4bit, Params4bit

    for name, whole in quantisable(model, options).items():
        small = Linear4bit(
            whole.in_features, whole.out_features, compute_dtype=model.dtype, quant_type="nf4", device=torch.device("meta")
        )
        small.weight = Params4bit(whole.weight.data, compress_statistics=True, quant_type="nf4", module=small)
        small.bias = whole.bias
        # Its form for some CPUs, taken up when nothing learns and kept from then on, gives no gradient.
        small.support_avx512bf16_for_cpu = False
        # Moving a weight is what makes it 4 bits.
        model.set_submodule(name, small.to(best_device()))
    # By this name peft knows which layers of its own to use.
    cast(Any, model).is_loaded_in_4bit = True


def quantisable(model: PreTrainedModel, options: TrainingOptions) -> dict[str, nn.Linear]:
    """The linear layers by name that `lora.quantise` puts in 4 bits: neither the head, nor the projector, nor what learns."""
    group_of = Groups(model)
    return {name: one for name, one in _linears(model).items() if group_of(name) not in {"projector", *in_full(options)}}


def prepare_model(model: PreTrainedModel, options: TrainingOptions) -> "PreTrainedModel | PeftModel":
    """Freeze what has no learning rate and put LoRA where it has a rank; the rest learns in full, in float32."""
    adapters = adapters_of(options)
    if not (adapters or in_full(options)):
        raise StllavaError(
            "every learning rate is 0", expected="a part of the model that learns", remedy="Set learning_rate.language, say."
        )
    group_of = Groups(model)
    present = {group_of(name) for name, _ in model.named_parameters()}
    for group in (group for group in GROUPS if rate_of(options, group) > 0 and group not in present):
        raise StllavaError(
            f"learning_rate.{group} is {rate_of(options, group):g} and {type(model).__name__} has no {group} weights",
            expected="a rate only for what the model has",
            remedy=f"Set learning_rate.{group} to 0.",
        )
    whole = [parameter for name, parameter in model.named_parameters() if group_of(name) in in_full(options)]
    model.requires_grad_(False)
    adapted = _with_adapters(model, adapters, group_of) if adapters else model
    for parameter in whole:
        # In bfloat16 a step of the usual size is rounded away.
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return adapted


def _with_adapters(model: PreTrainedModel, adapters: dict[Group, AdapterOptions], group_of: Groups) -> "PeftModel":
    """One set of adapters a part, by its name: peft knows one dropout a set."""
    linears: dict[Group, list[str]] = {group: [] for group in GROUPS}
    for name in _linears(model):
        linears[group_of(name)].append(name)
    for group in (group for group in adapters if not linears[group]):
        raise StllavaError(
            f"lora.{group}.rank is {adapters[group].rank} and {type(model).__name__} has no linear layers there",
            expected="linear layers for adapters to stand on",
            remedy=f"Set lora.{group}.rank to 0: that part then learns in full, or not at all at a rate of 0.",
        )
    with no_kernels_of_the_hub():
        from peft import LoraConfig, get_peft_model
    configs = {
        group: LoraConfig(
            r=one.rank,
            lora_alpha=one.strength,
            lora_dropout=one.dropout,
            target_modules=linears[group],
        )
        for group, one in adapters.items()
    }
    first, *others = configs
    with names_as_given():
        adapted: PeftModel = get_peft_model(model, configs[first], adapter_name=first)
        for group in others:
            adapted.add_adapter(group, configs[group])
    cast("LoraModel", adapted.base_model).set_adapter(list(configs))
    return adapted


@contextmanager
def names_as_given() -> Iterator[None]:
    """Keep peft from taking names of today's layers for those that some mixtures of experts had in transformers 4.

    It would put adapters on a GLM-4.5V's experts instead of on its dense and shared layers, and refuse dropout there.
    """
    from peft.utils import transformers_weight_conversion as conversion

    before = conversion.convert_peft_config_for_transformers
    conversion.convert_peft_config_for_transformers = lambda *_, **__: None
    try:
        yield
    finally:
        conversion.convert_peft_config_for_transformers = before


def _linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Linear layers by name: not the head, and not those whose weights multi-head attention reads by itself.

    Nor what is made from a linear layer and does something else, such as Llama 4's router, which gives two results.
    """
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear) and module is not head
        if type(module).forward is nn.Linear.forward or type(module).__name__ == QUANTISED
    }


def learned(model: nn.Module) -> dict[str, Tensor]:
    """What learns, by the names it has in memory: with adapters a small part of the model."""
    return {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}


def take_over(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put what was learned into a model that was prepared alike; a missing or unknown name is an error."""
    into = learned(model)
    if into.keys() != state.keys():
        odd = sorted(into.keys() ^ state.keys())
        raise StllavaError(
            f"what was learned does not fit this model: {len(odd)} names are on one side only, such as {odd[0]}",
            expected="the model and the options of the training that wrote it",
            remedy="Delete the stage's folder and run it again.",
        )
    for name, value in state.items():
        into[name].copy_(value)


def merged(model: nn.Module, options: TrainingOptions, *, dtype: torch.dtype) -> PreTrainedModel:
    """The model with its adapters merged into weights of `dtype`, every parameter free again.

    Weights of 4 bits are left behind: the adapters go into the whole ones, which are read anew, into main memory, since
    beside the others there may be no room for them on the device.
    """
    if is_adapted(model) and options.lora.quantise != "none":
        small = cast(PreTrainedModel, model.get_base_model())
        whole = read_weights(type(small), str(small.name_or_path), dtype=dtype)
        state, model = learned(model), prepare_model(whole, options)
        take_over(model, state)
    wide = [parameter for parameter in model.parameters() if parameter.requires_grad]
    plain = model.merge_and_unload() if is_adapted(model) else model
    if not isinstance(plain, PreTrainedModel):
        raise TypeError(f"expected a transformers model, got {type(plain).__name__}")
    for parameter in wide:
        parameter.data = parameter.data.to(dtype)
    return plain.requires_grad_(True)


def optimizer_groups(model: nn.Module, options: TrainingOptions) -> list[dict[str, object]]:
    """AdamW's parameter groups: one a part and kind of weight, no decay on vectors such as norms and biases."""
    group_of = Groups(model)
    groups: dict[tuple[Group, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((group_of(name), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "name": f"{group}{'' if decays else ' (no decay)'}",
            "params": parameters,
            "lr": rate_of(options, group),
            "weight_decay": options.weight_decay if decays else 0.0,
        }
        for (group, decays), parameters in groups.items()
    ]


def without_gradient(model: nn.Module, gradient_of: Callable[[nn.Parameter], Tensor | None]) -> list[Group]:
    """The parts that learn, and of which no weight has a gradient that is not zero after the first backward pass."""
    group_of = Groups(model)
    reached: dict[Group, bool] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and STARTS_ALONE not in name:
            gradient = gradient_of(parameter)
            there = gradient is not None and bool((gradient != 0).any())
            reached[group_of(name)] = reached.get(group_of(name), False) or there
    return [group for group, there in reached.items() if not there]


def table(model: nn.Module, options: TrainingOptions) -> list[str]:
    """What learns, as lines: of each part through what, how many parameters of how many, peak learning rate, dropout.

    Adapters do not count as parameters of the model.
    """
    group_of = Groups(model)
    learns, all_of = dict.fromkeys(GROUPS, 0), dict.fromkeys(GROUPS, 0)
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                # A weight of 4 bits shares its bytes with another one.
                is_matrix = isinstance(module, nn.Linear) and name == "weight"
                size = module.in_features * module.out_features if is_matrix else parameter.numel()
                group = group_of(f"{path}.{name}")
                learns[group] += size if parameter.requires_grad else 0
                all_of[group] += size if ".lora_" not in path else 0
    adapters = adapters_of(options)
    rows = [("part", "learns", "parameters", "of", "share", "peak rate", "dropout")]
    for group in (group for group in GROUPS if all_of[group] or group != "other"):
        one, rate = adapters.get(group), rate_of(options, group)
        how = f"LoRA, rank {one.rank}, alpha {one.strength}" if one else "in full" if rate else "not"
        rows.append((group, how, *_sizes(learns[group], all_of[group]), f"{rate:.1e}", f"{one.dropout:g}" if one else ""))
    rows.append(("all", "", *_sizes(sum(learns.values()), sum(all_of.values())), "", ""))
    return aligned(rows)


def _sizes(learns: int, of: int) -> tuple[str, str, str]:
    return f"{learns:,}", f"{of:,}", f"{learns / max(of, 1):.2%}"
