"""DeepSpeed's ZeRO: each process holds a part of the gradients and of the optimizer's state (2), and of the weights too (3)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stllava.errors import StllavaError
from stllava.model.device import best_device
from stllava.training.strategy import Strategy

MOMENTS = ("exp_avg", "exp_avg_sq")
SEES = ("vision", "projector")
"""Parts of a model that have nothing to learn in a step of text alone."""


def is_launched_with_deepspeed() -> bool:
    """Whether `accelerate launch` started this process for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


class ZeroAdamW(torch.optim.AdamW):
    """AdamW that can leave groups as they are.

    torch passes over parameters without a gradient. ZeRO gives them one of zeros, with which AdamW would move them on by
    their momentum and their decay.
    """

    rest: frozenset[str] = frozenset()
    """The groups, by the first word of their names, that take no part in the next step."""

    def step(self, closure: Any = None) -> Any:
        """Take a step in all groups that take part and have parameters."""
        groups = self.param_groups
        self.param_groups = [one for one in groups if one["params"] and one["name"].split()[0] not in self.rest]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


class ZeroStrategy(Strategy):
    """Each process holds a part of the gradients and moments (ZeRO-2), and of the weights (ZeRO-3).

    The weights that learn are float32 and forwards compute under autocast, as under every other strategy; DeepSpeed's own
    bf16 mode would round weights that learn, references and masks.

    Args:
        accelerator: Trainer's, with DeepSpeed's configuration.
        half: Whether to compute in bfloat16.
        quantised: Whether some of the weights are held in 4 bits.

    Raises:
        StllavaError: Where the configuration asks for what is not supported, or for another value than an option.
    """

    shares_out: ClassVar[bool] = True

    def __init__(self, accelerator: Accelerator, *, half: bool, quantised: bool) -> None:
        super().__init__(accelerator)
        asked = cast(Any, accelerator.state.deepspeed_plugin).hf_ds_config
        refuse_unsupported(asked, quantised=quantised)
        self.splits_weights: bool = asked.is_zero3()
        self.half = half
        if accelerator.device.type == "cpu":
            from deepspeed.ops import __compatible_ops__ as compiled

            # Else it compiles an exchange through shared memory for minutes, and waits for ever where that was killed.
            compiled["deepspeed_shm_comm"] = False
        if half:
            # Gradients are added up in float32, as DDP does: no module's are safe in less.
            asked.config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        self.inner: ZeroAdamW | None = None
        self.gradients: Tensor | None = None
        self.parameters: list[list[nn.Parameter]] = []

    def make_optimizer(self, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        """AdamW, whose parameters are remembered: ZeRO puts flat parts of them in their place."""
        self.parameters = [list(cast("list[nn.Parameter]", group["params"])) for group in groups]
        self.inner = ZeroAdamW(cast(Any, groups), fused=True)
        return self.inner

    def begin(self, model: nn.Module, optimizer: Any, state: Mapping[str, Any] | None) -> None:
        """Make the moments, which AdamW otherwise makes in its first step, and give each process its part of a state."""
        zero, inner = optimizer.optimizer, self._inner
        for _, flat in self._flat(zero):
            moments = {name: torch.zeros_like(flat) for name in MOMENTS}
            inner.state[flat] = {"step": torch.zeros((), dtype=torch.float32, device=flat.device), **moments}
        if self.splits_weights:
            self.gradients = zero.grad_partitions_flat_buffer
        else:
            # DeepSpeed 0.19 does this after the first group's first step, when the other groups have no moments yet.
            zero._lazy_init_hp_params_optimizer_state()
        if state is None:
            return
        for group, parameters, saved in zip(inner.param_groups, self.parameters, state["param_groups"], strict=True):
            group |= {name: value for name, value in saved.items() if name != "params"}
            for parameter, number in zip(parameters, saved["params"], strict=True):
                for name in MOMENTS if number in state["state"] else ():
                    self._take_part(parameter, name, state["state"][number][name].to(zero.device, torch.float32))
        for index, flat in self._flat(zero):
            numbers = state["param_groups"][index]["params"]
            steps = [float(state["state"][number]["step"]) for number in numbers if number in state["state"]]
            inner.state[flat]["step"].fill_(max(steps, default=0.0))

    def computing(self) -> AbstractContextManager[object]:
        """Autocast, which accelerate leaves to DeepSpeed and DeepSpeed gives to the model alone."""
        return torch.autocast(best_device().type, dtype=torch.bfloat16) if self.half else nullcontext()

    @contextmanager
    def forward(self, model: nn.Module, *, last: bool, shows_images: bool) -> Iterator[None]:
        """DeepSpeed's engine clips and steps at the end of the last backward; Trainer's calls of both do nothing."""
        self._inner.rest = frozenset() if shows_images else frozenset(SEES)
        self.accelerator.gradient_state._set_sync_gradients(last)
        yield
        if last and self.gradients is not None:
            # DeepSpeed 0.19 adds to the last step's gradient where a step's first forward gives a weight none.
            self.gradients.zero_()

    def gradient(self, parameter: nn.Parameter) -> Tensor | None:
        """The mean of the gradients so far: those of the step are gone when the engine has taken it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        return cast("Tensor | None", safe_get_full_optimizer_state(parameter, MOMENTS[0]))

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole of a parameter or buffer, apart from what the engine holds."""
        if not hasattr(tensor, "ds_id"):
            return tensor.detach().clone()
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().clone()

    def optimizer_state(self, model: nn.Module, optimizer: Any) -> dict[str, Any]:
        """The whole state, for the first process; of the others it is empty."""
        from deepspeed.utils import safe_get_full_optimizer_state

        inner = self._inner
        steps = {index: inner.state[flat]["step"] for index, flat in self._flat(optimizer.optimizer)}
        state: dict[int, dict[str, Tensor]] = {}
        groups: list[dict[str, Any]] = []
        keeps, number = self.accelerator.is_main_process, 0
        for index, (group, parameters) in enumerate(zip(inner.param_groups, self.parameters, strict=True)):
            groups.append(group | {"params": list(range(number, number + len(parameters)))})
            for parameter in parameters:
                moments = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
                if keeps:
                    # A step of its own: where parameters share the tensor, torch counts it up once for each of them.
                    state[number] = {"step": steps[index].cpu().clone(), **{name: one.cpu() for name, one in moments.items()}}
                number += 1
        return {"state": state, "param_groups": groups} if keeps else {}

    def _take_part(self, parameter: nn.Parameter, name: str, moment: Tensor) -> None:
        """Give this process its part of a parameter's whole moment."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not self.splits_weights:
            safe_set_full_optimizer_state(parameter, moment, name)
            return
        # The last process's part is filled up with zeros, which DeepSpeed 0.19 forgets when it is given a whole.
        size, index = cast(Any, parameter).ds_tensor.numel(), self.accelerator.process_index
        padded = nn.functional.pad(moment.flatten(), (0, size * self.accelerator.num_processes - moment.numel()))
        safe_set_local_optimizer_state(parameter, padded.narrow(0, size * index, size), name)

    @property
    def _inner(self) -> ZeroAdamW:
        if self.inner is None:
            raise RuntimeError("no optimizer was made")
        return self.inner

    def _flat(self, zero: Any) -> list[tuple[int, Tensor]]:
        """The flat float32 weights of this process, each with the number of its group."""
        if self.splits_weights:
            return [(zero.sub_group_to_group_id[place], one) for place, one in enumerate(zero.fp32_partitioned_groups_flat)]
        return list(enumerate(zero.single_partition_of_fp32_groups))


def refuse_unsupported(asked: Any, *, quantised: bool) -> None:
    """Refuse a configuration of DeepSpeed that would train otherwise than one process does."""
    stage = asked.get_value("zero_optimization.stage")
    if stage not in (2, 3):
        raise StllavaError(
            f"a training launched with ZeRO stage {stage}",
            expected="stage 2 or 3, or DDP without DeepSpeed",
            remedy="Launch it with examples/accelerate/zero2.yaml or zero3.yaml.",
        )
    if asked.is_offload():
        raise StllavaError(
            "DeepSpeed is to keep weights or optimizer states in main memory (offload)",
            expected="them on the GPUs: with offload DeepSpeed puts an optimizer of its own in the place of ours",
            remedy="Set offload_optimizer_device and offload_param_device to none.",
        )
    own = [name for name in ("optimizer", "scheduler") if name in asked.config]
    if own:
        raise StllavaError(
            f"DeepSpeed's configuration has a section {' and '.join(own)}",
            expected="the stage's own options: learning_rate of each part, schedule, warmup, weight_decay",
            remedy="Delete the section.",
        )
    if asked.mismatches:
        differ = "; ".join(line.strip("- ") for line in asked.mismatches)
        raise StllavaError(
            f"DeepSpeed's configuration differs from the stage's options: {differ}",
            expected="precision, clipping (max_grad_norm) and batch size from the options",
            remedy="Set these keys of DeepSpeed's configuration to auto, or leave them out.",
        )
    if quantised:
        raise StllavaError(
            "lora.quantise is 4bit, and DeepSpeed is to share the training out",
            expected="weights as numbers, which can be gathered",
            remedy="Set lora.quantise to none, or launch without DeepSpeed.",
        )
