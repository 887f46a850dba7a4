"""Attention in a packed row, span by span: nobody computes scores between tokens that do not see each other.

A mask over the whole row would do, but most of it is empty: a question's tokens see the image and their own chain, not
the other questions. Each span attends to its root and itself through transformers' own SDPA function or, where the kernel for
CPUs can, to its root together with the other spans that stand on it (tree/cascade.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from stllava.tree.cascade import CascadeAttention, RowCalls, cascades, plan_calls

NAME, COPYING = "stllava_tree", "stllava_tree_copying"
LEAST, MOST = 96, 192
"""Fewest tokens of questions that attend together, and about how many of an image: fewer save scores and cost calls.

Those of an image, but for the last, are a multiple of 64, the blocks that PyTorch's kernel for CPUs works in."""


@dataclass(frozen=True)
class Part:
    """A span of a row."""

    length: int
    """Tokens."""
    root: tuple[int, ...]
    """Which parts of the row before it it sees."""
    mask: Tensor
    """[1, 1, length, root + length], added to the scores."""


@dataclass(frozen=True)
class Cut:
    """How the rows of a forward are cut into spans, for either way to attend."""

    spans: Tensor
    """[S, 6]: row, root start and end, own start and end, and whether the span sees all of its root."""
    mask: Tensor
    """[R, 1, N, N], added to the scores."""

    @cached_property
    def parts(self) -> list[list[Part]]:
        """Of each row its parts in order, from the first token on."""
        rows: list[list[Part]] = [[] for _ in self.mask]
        starts: list[list[int]] = [[] for _ in self.mask]
        for row, root_start, root_end, start, end, _ in self.spans.tolist():
            root = tuple(place for place, other in enumerate(starts[row]) if root_start <= other < root_end)
            own = self.mask[row : row + 1, :, start:end]
            rows[row].append(Part(end - start, root, torch.cat([own[..., root_start:root_end], own[..., start:end]], dim=-1)))
            starts[row].append(start)
        return rows

    @cached_property
    def calls(self) -> list[RowCalls]:
        """How each row attends in parts that are put together."""
        return plan_calls(self.spans, self.mask)


@contextmanager
def by_parts(model: PreTrainedModel, spans: Tensor | None, mask: Tensor) -> Iterator[dict[str, Cut]]:
    """Let a language model that attends through SDPA attend by parts; yields what its forward needs to be told.

    `spans` is None where rows are not packed; `mask` is added to scores.
    """
    config = model.config.get_text_config()
    if spans is None or config._attn_implementation != "sdpa":
        yield {}
        return
    config._attn_implementation = NAME
    try:
        yield {"cut": Cut(spans, mask)}
    finally:
        config._attn_implementation = "sdpa"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cut: Cut | None = None,
    copies: bool = False,
    **others: Any,
) -> tuple[Tensor, None]:
    """[R, N, H, D] attention of query, key and value [R, H, N, D]; without a cut, with the mask over the whole row.

    `copies` lets each span save what it sees: what is computed again in the backward pass must save as autograd does.
    """
    if cut is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (one.to(torch.get_autocast_dtype(query.device.type)) for one in (query, key, value))
    if cascades(query, key, value, **others):
        groups = getattr(module, "num_key_value_groups", 1)
        scale = others.get("scaling") or query.shape[-1] ** -0.5
        made = CascadeAttention.apply(query, repeat_kv(key, groups), repeat_kv(value, groups), cut.calls, scale)  # type: ignore[no-untyped-call]
        return made, None
    others.pop("is_causal", None)
    rows = []
    # Split once: the gradient of a slice is as large as what it was cut from.
    for several, *row in zip(cut.parts, *(one.split(1) for one in (query, key, value)), strict=True):
        lengths = [part.length for part in several]
        empty = query.shape[2] - sum(lengths)
        queries, keys, values = (one.split([*lengths, empty], dim=2) for one in row)
        made = []
        for place, part in enumerate(several):
            seen = [[one[index] for index in (*part.root, place)] for one in (keys, values)]
            with nullcontext([torch.cat(one, dim=2) for one in seen]) if copies else joined(*seen) as (key, value):
                made.append(sdpa_attention_forward(module, queries[place], key, value, part.mask, **others)[0])
        made.append(made[0].new_zeros(1, empty, *made[0].shape[2:]))
        rows.append(torch.cat(made, dim=1))
    return torch.cat(rows), None


@contextmanager
def joined(*several: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Pieces [1, H, n, D] joined along the third dimension; what is computed of them saves the pieces for its gradient.

    Every span sees the image: copies of its keys and values, saved by each, would be a fifth of a step's memory.
    """
    whole = [torch.cat(list(pieces), dim=2) for pieces in several]
    if not torch.is_grad_enabled():
        yield whole
        return
    # By place and form, not the tensors themselves: what saves for the gradient keeps `pack` and all that it refers to.
    known = {_place(one): [piece.detach() for piece in pieces] for one, pieces in zip(whole, several, strict=True)}

    def pack(saved: Tensor) -> Tensor | list[Tensor]:
        return known.get(_place(saved), saved)

    def unpack(packed: Tensor | list[Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else torch.cat(packed, dim=2)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield whole


def _place(one: Tensor) -> tuple[object, ...]:
    """Where a tensor's values lie, by their storage: those of a model without values have no address."""
    return one.untyped_storage()._cdata, one.storage_offset(), one.shape, one.stride()


AttentionInterface.register(NAME, attend)
AttentionInterface.register(COPYING, partial(attend, copies=True))
