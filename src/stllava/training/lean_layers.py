"""Layers of stock models that keep less for their gradients while they learn, for the same numbers.

Autograd keeps every intermediate result of a gated MLP, of an RMSNorm and of CLIP's activation. Here only what their
products were made of is kept, and elementwise passes are done again or not at all, as Liger Kernel does on GPUs (Hsu et al.,
arXiv 2410.10989); rotary positions are two passes instead of five. What is replaced is known by its code: whoever's forward
is not transformers' own, statement for statement, is left as it is.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu
from transformers import PreTrainedModel
from transformers.activations import ACT2FN, QuickGELUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb, rotate_half

from stllava.config import TrainingOptions
from stllava.tree.forward import activation_checkpointing

ROTATE, HALF = "apply_rotary_pos_emb", "rotate_half"
"""What transformers' attention layers call, from their own file."""
QUICK = 1.702
"""The factor of CLIP's activation."""


def layers_that_learn(model: PreTrainedModel, options: TrainingOptions) -> AbstractContextManager[None]:
    """How the layers keep what their gradients need while the model learns: as little as the options ask, or lean."""
    return activation_checkpointing(model) if options.checkpoint_activations else lean_layers(model)


@contextmanager
def lean_layers(model: nn.Module) -> Iterator[None]:
    """Let gated MLPs, RMSNorms, CLIP's activations and rotary positions cost less for their gradients, while this lasts."""
    with ExitStack() as undo:
        for module in model.modules():
            forward = lean_forward(module)
            if forward is not None:
                module.forward = partial(forward, module)
                undo.callback(vars(module).pop, "forward", None)
            elif rotates(module):
                names = type(module).forward.__globals__
                undo.callback(names.__setitem__, ROTATE, names[ROTATE])
                names[ROTATE] = _rotated
        yield


def lean_forward(module: nn.Module) -> Callable[..., Tensor] | None:
    """What computes the same as this module's forward and keeps less; None where there is nothing of that kind."""
    if _says(module, LlamaRMSNorm):
        return _normed
    if _says(module, QuickGELUActivation):
        return _quick_gelu
    if _says(module, LlamaMLP) and isinstance(module.act_fn, type(ACT2FN["silu"])):
        return _gated
    return None


def rotates(module: nn.Module) -> bool:
    """Whether this module's forward calls rotary positions that are computed as Llama's are."""
    forward = type(module).forward
    if not isinstance(forward, FunctionType) or ROTATE not in forward.__code__.co_names:
        return False
    names = forward.__globals__
    return _same(names.get(ROTATE), apply_rotary_pos_emb) and _same(names.get(HALF), rotate_half)


def _same(one: object, other: object) -> bool:
    """Whether two functions compute the same, by their code."""
    return isinstance(one, FunctionType) and isinstance(other, FunctionType) and _statements(one) == _statements(other)


def _says(module: nn.Module, other: type[nn.Module]) -> bool:
    """Whether a module computes what another class does, by the code of their forwards."""
    return _same(type(module).forward, other.forward)


def _statements(function: FunctionType) -> tuple[object, ...]:
    code = function.__code__
    constants = code.co_consts[1:] if function.__doc__ else code.co_consts
    return code.co_code, code.co_names, constants, code.co_varnames[: code.co_argcount], function.__defaults__


def _normed(norm: Any, hidden_states: Tensor) -> Tensor:
    return cast(Tensor, LeanRMSNorm.apply(hidden_states, norm.weight, norm.variance_epsilon))  # type: ignore[no-untyped-call]


def _quick_gelu(_: Any, input: Tensor) -> Tensor:  # noqa: A002 - its name in transformers
    return cast(Tensor, LeanQuickGELU.apply(input))  # type: ignore[no-untyped-call]


def _gated(mlp: Any, x: Tensor) -> Tensor:
    layers = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if all(_is_plain(one, x) for one in layers) and len({one.weight.requires_grad for one in layers}) == 1:
        return cast(Tensor, LeanMLP.apply(x, *(one.weight for one in layers)))  # type: ignore[no-untyped-call]
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    shared = SharedSilu(gate.detach())
    product = cast(Tensor, LeanGate.apply(gate, up, shared))  # type: ignore[no-untyped-call]
    if not product.requires_grad:  # Then gate and up are not kept anyway.
        return cast(Tensor, mlp.down_proj(product))
    with _made_again(product, shared, up.detach()):
        return cast(Tensor, mlp.down_proj(product))


def _is_plain(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer is a product with its weight and nothing else, in one precision.

    That is, no adapter, bias, hook or forward of its own, and no autocast.
    """
    return (
        type(layer) is nn.Linear
        and cast("Tensor | None", layer.bias) is None
        and layer.weight.dtype == x.dtype
        and not torch.is_autocast_enabled(x.device.type)
        and "forward" not in vars(layer)
        and not (layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks)
    )


def _rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    if cos.requires_grad or sin.requires_grad:  # No model known learns its angles.
        return cast("tuple[Tensor, Tensor]", apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim))
    turns = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    of_q, of_k = (LeanRotation.apply(one, *turns) for one in (q, k))  # type: ignore[no-untyped-call]
    return of_q, of_k


class LeanRotation(torch.autograd.Function):
    """x · cos + (its halves swapped, the first negative) · sin, over the last dimension; keeps cos and sin."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Every pair of numbers of x turned by its angle."""
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        first, second = sin.chunk(2, dim=-1)
        return _turned(x, cos, first, second, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of x: what comes in, turned back."""
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, dim=-1)
        return _turned(gradients[0], cos, second, first, -1).to(ctx.dtype), None, None


def _turned(x: Tensor, cos: Tensor, of_second: Tensor, of_first: Tensor, way: int) -> Tensor:
    """x · cos, and of its halves so many times the second taken from the first, and the first added to the second; or back."""
    turned = x * cos
    (first, second), into = x.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    into[0].addcmul_(second, of_second, value=-way)
    into[1].addcmul_(first, of_first, value=way)
    return turned


class LeanRMSNorm(torch.autograd.Function):
    """w · x / rms(x) over the last dimension, in float32 as Llama does it; keeps x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """The normalised rows, each times the weight."""
        whole = x.float()
        scale = torch.rsqrt(torch.linalg.vecdot(whole, whole)[..., None] / x.shape[-1] + epsilon)
        ctx.save_for_backward(x, weight, scale)
        made = (whole * scale).to(x.dtype)
        return made.mul_(weight) if made.dtype == weight.dtype else made * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """The gradients of x and of the weight, where they are asked for."""
        x, weight, scale = ctx.saved_tensors
        gradient, whole, width = gradients[0].float(), x.float(), x.shape[-1]
        # As a LayerNorm's whose means are zero, but for what it takes off so that its own gradients have none.
        asked = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        of_x, of_weight, _ = torch.ops.aten.native_layer_norm_backward(
            gradient, whole, [width], torch.zeros_like(scale), scale, weight.float(), None, asked
        )
        if of_x is not None:
            taken = (gradient.reshape(-1, width) @ weight.float()).view_as(scale).mul_(scale).div_(width)
            of_x = of_x.add_(taken).to(x.dtype)
        return of_x, of_weight.to(weight.dtype) if of_weight is not None else None, None


class LeanQuickGELU(torch.autograd.Function):
    """x · sigmoid(1.702 x), as OpenAI's CLIP has it, which is silu(1.702 x) / 1.702; keeps x.

    Of x beyond a 1.702th of the largest number of its precision it makes what is no number.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The activation, element by element."""
        ctx.save_for_backward(x)
        return silu(QUICK * x, inplace=True).div_(QUICK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient of x."""
        (x,) = ctx.saved_tensors
        scaled = QUICK * x
        return cast(Tensor, torch.ops.aten.silu_backward.grad_input(gradients[0], scaled, grad_input=scaled))


class LeanMLP(torch.autograd.Function):
    """down(silu(gate(x)) · up(x)) of three weights; keeps what gate and up give, and x where they learn.

    Silu and product are computed again, and on the way back each wide result is written over what was needed for it last.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_weight: Tensor, up_weight: Tensor, down_weight: Tensor) -> Tensor:
        """What a gated MLP gives of x [..., H]."""
        gate, up = x @ gate_weight.t(), x @ up_weight.t()
        learns = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(x if learns else None, gate, up, gate_weight, up_weight, down_weight)
        return silu(gate).mul_(up) @ down_weight.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of x and of the weights, where they are asked for."""
        x, *wide, gate_weight, up_weight, down_weight = ctx.saved_tensors
        gate, up, gradient = (one.reshape(-1, one.shape[-1]) for one in (*wide, gradients[0]))
        asked_x, asked_gate, asked_up, asked_down = ctx.needs_input_grad
        opened = silu(gate)
        product = opened * up
        of_down = gradient.t() @ product if asked_down else None
        of_product = torch.mm(gradient, down_weight, out=product)
        of_up = opened.mul_(of_product)
        of_opened = of_product.mul_(up)
        of_gate = torch.ops.aten.silu_backward.grad_input(of_opened, gate, grad_input=of_opened)
        of_x = (of_gate @ gate_weight).addmm_(of_up, up_weight).view(gradients[0].shape) if asked_x else None
        of_gate_weight = of_gate.t() @ x.reshape(-1, x.shape[-1]) if asked_gate else None
        of_up_weight = of_up.t() @ x.reshape(-1, x.shape[-1]) if asked_up else None
        return of_x, of_gate_weight, of_up_weight, of_down


class SharedSilu:
    """silu of a gate, made again for the gradients of the product's weight and handed on to those of the gate."""

    def __init__(self, gate: Tensor) -> None:
        self.gate = gate
        self.silu: Tensor | None = None

    def look(self) -> Tensor:
        """Make it, unless it is there."""
        if self.silu is None:
            self.silu = silu(self.gate)
        return self.silu

    def take(self) -> Tensor:
        """Make it, unless it is there, and forget it."""
        made, self.silu = self.look(), None
        return made


class LeanGate(torch.autograd.Function):
    """silu(gate) · up; keeps the two and computes silu again for the gradient."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, shared: SharedSilu) -> Tensor:
        """The product, element by element."""
        ctx.save_for_backward(gate, up)
        ctx.shared = shared
        return silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of gate and up."""
        gate, up = ctx.saved_tensors
        of_up = ctx.shared.take().mul_(gradients[0])
        of_silu = gradients[0] * up
        return torch.ops.aten.silu_backward.grad_input(of_silu, gate, grad_input=of_silu), of_up, None


@contextmanager
def _made_again(product: Tensor, shared: SharedSilu, up: Tensor) -> Iterator[None]:
    """Let what is computed of the product keep what it was made of, which is kept anyway, in its place."""
    storage, numbers = product.untyped_storage()._cdata, product.numel()

    def pack(saved: Tensor) -> Tensor | torch.Size:
        is_product = saved.untyped_storage()._cdata == storage and saved.numel() == numbers and saved.is_contiguous()
        return saved.shape if is_product else saved

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        return packed if isinstance(packed, Tensor) else (shared.look() * up).view(packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
