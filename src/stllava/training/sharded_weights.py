"""Weights of which each process holds a part (FSDP2): gathered to be written as one process writes them, and read again.

So a checkpoint goes on in any number of processes, whether they hold the whole model or share it out.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# What no gradient reaches, such as a vision tower's unused last norm, has no state.
ANY_PART = StateDictOptions(full_state_dict=True, strict=False)


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters hold nothing yet, for weights that are gathered after a sharded training."""
    empty = {id(one): nn.Parameter(torch.empty_like(one, device="meta"), one.requires_grad) for one in model.parameters()}
    return copy.deepcopy(model, memo=dict(empty))


def gathered(model: nn.Module, *, keeps: bool) -> dict[str, Tensor]:
    """The whole weights of a sharded model, in main memory; every process must ask, and gets them if it keeps them."""
    state = {}
    for name, value in model.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if keeps:
            state[name] = whole.detach().cpu()
    return state


def read_sharded(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give a sharded model whole weights, each process its part; other parameters stay, an unknown name is an error."""
    unknown = weights.keys() - dict(model.named_parameters()).keys()
    if unknown:
        raise RuntimeError(f"the model has no {', '.join(sorted(unknown))}")
    set_model_state_dict(model, dict(weights), options=ANY_PART)


def whole_optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """An optimizer's state as one process that holds all has it, parameters by their number.

    Every process must ask; only the first gets it, the others an empty one.
    """
    named: Any = get_optimizer_state_dict(model, optimizer_of(optimizer), options=WHOLE)
    if not named:
        return {}
    number = {name: index for index, name in enumerate(_names(model, optimizer))}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in named["param_groups"]]
    return {"state": {number[name]: state for name, state in named["state"].items()}, "param_groups": groups}


def read_optimizer_state(model: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Give an optimizer such a state, each process its part."""
    names = _names(model, optimizer)
    groups = [{**group, "params": [names[index] for index in group["params"]]} for group in state["param_groups"]]
    named: Any = {"state": {names[index]: one for index, one in state["state"].items()}, "param_groups": groups}
    set_optimizer_state_dict(model, optimizer_of(optimizer), named, options=ANY_PART)


def optimizer_of(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer within accelerate's."""
    within: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return within


def _names(model: nn.Module, optimizer: Any) -> list[str]:
    """The names of an optimizer's parameters, in their order."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer_of(optimizer).param_groups for parameter in group["params"]]
