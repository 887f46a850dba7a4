"""How processes that train together hold the model: each the whole of it (DDP), as one alone does, or each a part.

A checkpoint is that of one process under any strategy, so that a training goes on in another number of processes, and under
another strategy.
"""

import copy
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stllava.model.groups import is_adapted


class Strategy:
    """Each process holds the whole model: one alone, or several with DDP."""

    shares_out: ClassVar[bool] = False
    """Whether the model's weights and the optimizer's state are shared out among the processes."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def make_optimizer(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """AdamW with one learning rate a group."""
        return torch.optim.AdamW(cast(Any, groups), fused=True)

    def begin(self, model: nn.Module, optimizer: Any, state: Mapping[str, Any] | None) -> None:
        """Give an optimizer the state that a checkpoint has of it, if there is one; every process must ask."""
        if state is not None:
            optimizer.load_state_dict(state)

    def computing(self) -> AbstractContextManager[object]:
        """The context of a forward's loss, in addition to Trainer's own."""
        return nullcontext()

    def forward(self, model: nn.Module, *, last: bool, shows_images: bool) -> AbstractContextManager[object]:
        """The context of one of a step's forwards and backwards.

        Args:
            model: The model as Trainer wrapped it.
            last: Whether it is the step's last, after which gradients are added up over the processes.
            shows_images: Whether any forward of the step shows an image.
        """
        return nullcontext() if last else self.accelerator.no_sync(model)

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """A tensor that is zero where a step's gradient is; every process must ask."""
        return parameter.grad

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a parameter or buffer; every process must ask."""
        return tensor

    def weights(self, model: nn.Module, names: Collection[str], *, keeps: bool) -> dict[str, Tensor]:
        """Whole weights by name, in main memory; every process must ask, and gets them if it keeps them."""
        found = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in names:
                whole = self.whole(tensor)
                if keeps:
                    found[name] = whole.detach().cpu().contiguous()
        return found

    def optimizer_state(self, model: nn.Module, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state as one process has it, parameters by their number; every process must ask.

        Only the first process needs to get it.
        """
        state: dict[str, Any] = optimizer.state_dict()
        return state


def names_to_keep(model: nn.Module) -> set[str]:
    """What a checkpoint holds: with adapters what learns, else parameters and buffers, of those that are one the first."""
    if is_adapted(model):
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    again = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return set(model.state_dict().keys() - again)


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model whose parameters hold nothing yet, for weights that are gathered after a training."""
    empty = {id(one): nn.Parameter(torch.empty_like(one, device="meta"), one.requires_grad) for one in model.parameters()}
    return copy.deepcopy(model, memo=dict(empty))
