"""Layers that keep less for their gradients give the same numbers, and what is no such layer is left alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import GemmaConfig, LlamaConfig, Phi3Config, Qwen2Config
from transformers.activations import QuickGELUActivation
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3Attention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm

from stllava.training.lean_layers import lean_forward, lean_layers, rotates

SIZES: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 2}


def layer(kind: str) -> nn.Module:
    """CLIP's activation, an RMSNorm with weights of its own, or a gated MLP, of plain layers or with something besides."""
    torch.manual_seed(0)
    if kind == "quick gelu":
        return cast(nn.Module, QuickGELUActivation())
    if kind.startswith("mlp"):
        mlp = cast(nn.Module, LlamaMLP(LlamaConfig(**SIZES, mlp_bias=kind == "mlp with a bias")))
        if kind == "mlp with a hook":
            mlp.get_submodule("up_proj").register_forward_hook(lambda _, __, output: 2 * output)
        return mlp
    norm = cast(nn.Module, LlamaRMSNorm(24))
    nn.init.normal_(norm.get_parameter("weight"))
    return norm


def learned(module: nn.Module, inputs: Tensor) -> list[Tensor]:
    """What comes of a module, and the gradients of a weighted sum of it: of the inputs and of what learns."""
    module.zero_grad()
    given = inputs.clone().requires_grad_()
    output = module(given)
    draw = torch.Generator().manual_seed(2)
    (output.float() * torch.randn(output.shape, generator=draw)).sum().backward()
    return [output.detach(), *(one.grad for one in (given, *module.parameters()) if one.grad is not None)]


@contextmanager
def bytes_kept(shared: Tensor) -> Iterator[list[int]]:
    """Collects the size of every storage that is kept for gradients, other than that of the input."""
    storages: dict[int, int] = {}
    total = [0]

    def pack(saved: Tensor) -> Tensor:
        storages[saved.untyped_storage()._cdata] = saved.untyped_storage().nbytes()
        total[0] = sum(size for key, size in storages.items() if key != shared.untyped_storage()._cdata)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        yield total


@pytest.mark.parametrize("kind", ["quick gelu", "norm", "mlp", "mlp with a bias", "mlp with a hook"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True], ids=["in full", "frozen"])
def test_lean_layers_compute_what_theirs_do(kind: str, dtype: torch.dtype, frozen: bool) -> None:
    module = layer(kind).to(dtype).requires_grad_(not frozen)
    inputs = torch.randn(2, 7, 24, dtype=dtype)
    theirs = learned(module, inputs)
    with lean_layers(module):
        assert "forward" in vars(module)
        ours = learned(module, inputs)
    assert "forward" not in vars(module)
    assert len(ours) == len(theirs) == (2 if frozen else 2 + len(list(module.parameters())))
    relative, absolute = (1e-5, 1e-5) if dtype == torch.float32 else (0.02, 0.05)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=relative, atol=absolute)


def test_a_lean_mlp_under_autocast_computes_what_theirs_does() -> None:
    module = layer("mlp")
    inputs = torch.randn(2, 7, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = learned(module, inputs)
        with lean_layers(module):
            ours = learned(module, inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.05)


def test_gradients_of_a_lean_norm_are_those_of_differences() -> None:
    norm = layer("norm").double()
    forward = cast(Any, lean_forward(norm))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        inputs = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: forward(norm, x), (inputs,))


@pytest.mark.parametrize(("kind", "most"), [("quick gelu", 0.0), ("norm", 0.1), ("mlp", 2.01), ("mlp with a bias", 2.01)])
def test_lean_layers_keep_less(kind: str, most: float) -> None:
    """CLIP's activation keeps its input, a norm little more; an MLP what gate and up give, and neither silu nor product."""
    module = layer(kind)
    inputs = torch.randn(1, 200, 24, requires_grad=True)
    result = 200 * (40 if kind.startswith("mlp") else 24) * 4
    weights = sum(one.nbytes for one in module.parameters())
    kept = []
    for lean in (False, True):
        with lean_layers(module if lean else nn.Identity()), bytes_kept(inputs) as total:
            module(inputs)
        kept.append(total[0] - weights)
    assert kept[1] <= most * result < kept[0]


def test_an_mlp_of_which_the_last_layer_learns_alone_keeps_the_product() -> None:
    module = layer("mlp").requires_grad_(False)
    module.get_submodule("down_proj").requires_grad_(True)
    inputs = torch.randn(1, 200, 24)
    with lean_layers(module), bytes_kept(inputs) as total:
        module(inputs)
    assert total[0] == 200 * 40 * 4


def test_a_frozen_mlp_keeps_nothing_of_its_input() -> None:
    module = layer("mlp").requires_grad_(False)
    inputs = torch.randn(1, 200, 24, requires_grad=True)
    kept: list[int] = []

    def pack(saved: Tensor) -> Tensor:
        kept.append(saved.untyped_storage().data_ptr())
        return saved

    with lean_layers(module), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        output = module(inputs)
    assert kept
    assert inputs.untyped_storage().data_ptr() not in kept
    output.sum().backward()
    assert inputs.grad is not None


def test_a_layer_that_was_given_a_forward_of_its_own_is_called() -> None:
    """As accelerate does it, which moves weights to where they are needed there."""
    module = layer("mlp")
    up = cast(nn.Linear, module.get_submodule("up_proj"))
    inputs = torch.randn(2, 7, 24)
    up.forward = lambda input: 2 * nn.functional.linear(input, up.weight)  # type: ignore[method-assign]  # noqa: A006
    theirs = learned(module, inputs)
    with lean_layers(module):
        ours = learned(module, inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["quick gelu", "norm", "mlp", "mlp with a bias"])
def test_gradients_of_gradients_are_refused(kind: str) -> None:
    module = layer(kind)
    inputs = torch.randn(2, 7, 24, requires_grad=True)
    with lean_layers(module):
        (first,) = torch.autograd.grad(module(inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


class Wrapped(nn.Module):
    """A module whose forward is no function of Python's."""

    forward = partial(torch.add, 1)


def test_only_what_says_the_same_is_replaced() -> None:
    assert lean_forward(Wrapped()) is None
    assert lean_forward(cast(nn.Module, Qwen2RMSNorm(8))) is not None
    assert lean_forward(cast(nn.Module, Qwen2MLP(Qwen2Config(**SIZES)))) is not None
    assert lean_forward(cast(nn.Module, GemmaRMSNorm(8))) is None
    assert lean_forward(cast(nn.Module, GemmaMLP(GemmaConfig(**SIZES)))) is None
    assert lean_forward(nn.Linear(2, 2)) is None
    assert lean_forward(nn.ReLU()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True], ids=["as it is", "autocast"])
def test_a_lean_rotation_turns_as_theirs_does(dtype: torch.dtype, autocast: bool) -> None:
    """Queries and keys of other heads, in the attention's layout; under autocast they are halves and the angles are not."""
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 5, heads, 8, generator=draw).to(dtype).transpose(1, 2) for heads in (4, 2)]
    angles = torch.randn(2, 5, 8, generator=draw).to(torch.float32 if autocast else dtype)
    found = []
    attention = nn.ModuleList([LlamaAttention(LlamaConfig(**SIZES), 0)])
    for lean in (False, True):
        with lean_layers(attention if lean else nn.Identity()):
            given = [one.clone().requires_grad_() for one in states]
            turned = modeling_llama.apply_rotary_pos_emb(*given, angles.cos(), angles.sin())
            weights = [torch.randn(one.shape, generator=torch.Generator().manual_seed(1)) for one in turned]
            sum((one.float() * weight).sum() for one, weight in zip(turned, weights, strict=True)).backward()
            found.append([*turned, *(one.grad for one in given)])
    relative, absolute = (1e-6, 1e-6) if dtype == torch.float32 else (0.02, 0.05)
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=relative, atol=absolute)


def test_angles_that_learn_get_their_gradients() -> None:
    cos, sin = (torch.randn(2, 5, 8, requires_grad=True) for _ in range(2))
    with lean_layers(LlamaAttention(LlamaConfig(**SIZES), 0)):
        sum(one.sum() for one in modeling_llama.apply_rotary_pos_emb(*torch.randn(2, 2, 4, 5, 8), cos, sin)).backward()
    assert cos.grad is not None
    assert sin.grad is not None


def test_rotary_positions_are_replaced_while_layers_are_lean_and_where_they_are_llamas() -> None:
    theirs = modeling_llama.apply_rotary_pos_emb
    attention = LlamaAttention(LlamaConfig(**SIZES), 0)
    with lean_layers(nn.ModuleList([attention, attention])):
        assert modeling_llama.apply_rotary_pos_emb is not theirs
    assert modeling_llama.apply_rotary_pos_emb is theirs
    with lean_layers(attention), lean_layers(nn.ModuleList([attention, layer("mlp")])):
        pass
    assert modeling_llama.apply_rotary_pos_emb is theirs
    assert rotates(Qwen2Attention(Qwen2Config(**SIZES), 0))
    assert not rotates(Phi3Attention(Phi3Config(**SIZES), 0)), "turns a part of each head only"
    assert not rotates(nn.Linear(2, 2))
    assert not rotates(Wrapped())
