"""Which parts of a model learn, how fast, and through what: full weights or LoRA."""

from typing import Literal

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from stllava.config import GroupRates, LoraOptions, TrainingOptions
from stllava.errors import StllavaError
from stllava.model.families import PROJECTOR, VISION

Group = Literal["language", "projector", "vision"]


def group_of(name: str) -> Group:
    """The part of the model a parameter or module belongs to, by the names transformers gives them."""
    parts = name.split(".")
    if any(part in PROJECTOR for part in parts):
        return "projector"
    return "vision" if any(part in VISION for part in parts) else "language"


def rate_of(rates: GroupRates, group: Group) -> float:
    """Peak learning rate of a part."""
    return {"language": rates.language, "projector": rates.projector, "vision": rates.vision}[group]


def prepare_model(model: PreTrainedModel, options: TrainingOptions) -> PreTrainedModel | PeftModel:
    """Freeze what has no learning rate and put LoRA where it has a rank; the rest learns in full."""
    ranks: dict[Group, int] = {"language": options.lora.language_rank, "vision": options.lora.vision_rank, "projector": 0}
    rates = options.learning_rate
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rate_of(rates, group_of(name)) > 0)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise StllavaError(
            "every learning rate is 0", expected="a part of the model that learns", remedy="Set learning_rate.language, say."
        )
    adapted = {group for group, rank in ranks.items() if rank > 0 and rate_of(rates, group) > 0}
    return _with_lora(model, options.lora, ranks, adapted, rates) if adapted else model


def _with_lora(
    model: PreTrainedModel, lora: LoraOptions, ranks: dict[Group, int], adapted: set[Group], rates: GroupRates
) -> PeftModel:
    head = model.get_output_embeddings()
    linear = {
        name: group_of(name) for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    }
    targets = [name for name, group in linear.items() if group in adapted]
    roots = [name for name, _ in model.named_modules() if _is_root(name)]
    in_full = [name for name in roots if group_of(name) not in adapted and rate_of(rates, group_of(name)) > 0]
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=round(max(ranks.values()) * lora.alpha_per_rank),
        lora_dropout=lora.dropout,
        target_modules=targets,
        rank_pattern={name: ranks[linear[name]] for name in targets},
        alpha_pattern={name: ranks[linear[name]] * lora.alpha_per_rank for name in targets},
        modules_to_save=in_full or None,
    )
    return get_peft_model(model, config)


def _is_root(name: str) -> bool:
    *above, last = name.split(".")
    return last in (*VISION, *PROJECTOR) and not any(part in (*VISION, *PROJECTOR) for part in above)


def merged(model: nn.Module) -> PreTrainedModel:
    """The model with its adapters merged into the weights, every parameter free again."""
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a transformers model, got {type(model).__name__}")
    return model.requires_grad_(True)


def optimizer_groups(model: nn.Module, options: TrainingOptions) -> list[dict[str, object]]:
    """AdamW's parameter groups: one a part and kind of weight, no decay on vectors such as norms and biases."""
    groups: dict[tuple[Group, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((group_of(name), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "name": f"{group}{'' if decays else ' (no decay)'}",
            "params": parameters,
            "lr": rate_of(options.learning_rate, group),
            "weight_decay": options.weight_decay if decays else 0.0,
        }
        for (group, decays), parameters in groups.items()
    ]
