"""FSDP2: each process holds a part of every weight, of its gradient and of the optimizer's state."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from stllava.training.strategy import Strategy

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# What no gradient reaches, such as a vision tower's unused last norm, has no state.
ANY_PART = StateDictOptions(full_state_dict=True, strict=False)


class FsdpStrategy(Strategy):
    """Each process holds a part of every weight (FSDP2)."""

    shares_out: ClassVar[bool] = True

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        super().__init__(accelerator)
        # transformers names classes that a model may lack, and accelerate asks for every one of them.
        layers = {type(one).__name__ for one in model.modules() if isinstance(one, GradientCheckpointingLayer)}
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(layers)

    def begin(self, model: nn.Module, optimizer: Any, state: Mapping[str, Any] | None) -> None:
        """Give each process its part of a state."""
        if state is None:
            return
        names = _names(model, optimizer)
        groups = [{**group, "params": [names[index] for index in group["params"]]} for group in state["param_groups"]]
        named: Any = {"state": {names[index]: one for index, one in state["state"].items()}, "param_groups": groups}
        set_optimizer_state_dict(model, optimizer_of(optimizer), named, options=ANY_PART)

    def forward(self, model: nn.Module, *, last: bool, shows_images: bool) -> AbstractContextManager[object]:
        """Gradients are added up part by part after each: whole ones would undo what sharing out saves."""
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a parameter or buffer, gathered from all processes."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def optimizer_state(self, model: nn.Module, optimizer: Any) -> dict[str, Any]:
        """The whole state, for the first process; the others get an empty one."""
        named: Any = get_optimizer_state_dict(model, optimizer_of(optimizer), options=WHOLE)
        if not named:
            return {}
        number = {name: index for index, name in enumerate(_names(model, optimizer))}
        groups = [{**group, "params": [number[name] for name in group["params"]]} for group in named["param_groups"]]
        return {"state": {number[name]: state for name, state in named["state"].items()}, "param_groups": groups}


def optimizer_of(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer within accelerate's."""
    within: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return within


def _names(model: nn.Module, optimizer: Any) -> list[str]:
    """The names of an optimizer's parameters, in their order."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer_of(optimizer).param_groups for parameter in group["params"]]
