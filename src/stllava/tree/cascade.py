"""Attention of packed rows on a CPU: what many spans see is attended to once for all of them, and parts are put together.

A row's tokens attend within their own span, and all spans that stand on one root attend to that root in one call, without a
mask and without copies of its keys and values for each. Softmax over parts is put together by their log-sum-exp, as in
FlashAttention (Dao et al., arXiv 2205.14135) and as served prefixes are in cascade inference (FlashInfer, arXiv 2501.01005);
here with gradients: those of a part need only the whole's log-sum-exp and output.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)
"""In which parts are put together: the kernel rounds each part to its precision, which in half of one is seen in the whole."""
KEYS = 16
"""Of how many keys the kernel's products are a multiple: a call with 128 takes a tenth less than one with 124."""


@dataclass(frozen=True)
class Call:
    """Queries of a row that attend to keys of the row in one call of the kernel."""

    queries: tuple[int, int]
    """First and end."""
    keys: tuple[int, int]
    """First and end."""
    mask: Tensor | None
    """[1, 1, queries, keys], added to the scores; None where every one of these queries sees every one of these keys."""


@dataclass(frozen=True)
class RowCalls:
    """How one row attends: each of its tokens is among the queries of one call of `own`, and of `shared` of any number."""

    own: tuple[Call, ...]
    """Spans within themselves, in order, from the first token on."""
    shared: tuple[Call, ...]
    """Spans with what stands before them."""

    @property
    def end(self) -> int:
        """The first place behind the row's last span."""
        return self.own[-1].queries[1]


def plan_calls(spans: Tensor, mask: Tensor) -> list[RowCalls]:
    """How every row attends, of spans [S, 6] as `collate` gives them and a mask [R, 1, N, N] to add to scores."""
    own: list[list[Call]] = [[] for _ in mask]
    shared: list[list[Call]] = [[] for _ in mask]
    for row, root_start, root_end, start, end, sees_root in spans.tolist():
        queries, root = (start, end), (root_start, root_end)
        # A span on several roots sees some of what stands before it, which is the whole row up to itself.
        keys = queries if sees_root else (root_start, end)
        # Keys behind the span, which the mask hides, fill the last of the kernel's blocks, where a part costs more than all.
        # What stands there must be numbers, as with a mask over the whole row.
        keys = keys[0], min(keys[0] + KEYS * -(-(end - keys[0]) // KEYS), mask.shape[-1])
        own[row].append(Call(queries, keys, mask[row : row + 1, :, start:end, keys[0] : keys[1]]))
        if sees_root and root_end > root_start:
            last = shared[row][-1] if shared[row] else None
            if last is not None and last.keys == root and last.queries[1] == start:
                shared[row][-1] = Call((last.queries[0], end), root, None)
            else:
                shared[row].append(Call(queries, root, None))
    return [RowCalls(tuple(calls), tuple(several)) for calls, several in zip(own, shared, strict=True)]


def cascades(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0, **others: Any) -> bool:
    """Whether PyTorch's kernel for CPUs can attend so: no dropout, one width and precision, nothing else added to scores."""
    return (
        query.device.type == "cpu"
        and not dropout
        and query.shape[-1] == value.shape[-1]
        and query.dtype == key.dtype == value.dtype
        and query.dtype in DTYPES
        and others.get("position_bias") is None
    )


class CascadeAttention(torch.autograd.Function):
    """[R, N, H, D] attention of query, key and value [R, H, N, D] on a CPU; zero behind a row's last span."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Sequence[RowCalls], scale: float) -> Tensor:
        """Attend call by call and put the parts together."""
        output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], query.shape[3]).transpose(1, 2)
        totals = query.new_empty(query.shape[0], query.shape[2], query.shape[1]).transpose(1, 2)
        for row, calls in enumerate(rows):
            q, k, v, out, total = (one[row : row + 1] for one in (query, key, value, output, totals))
            for call in calls.own:
                made, its = _attend(_at(q, call.queries), _at(k, call.keys), _at(v, call.keys), call.mask, scale)
                _at(out, call.queries).copy_(made)
                _at(total, call.queries).copy_(its)
            out[:, :, calls.end :].zero_()
            for call in calls.shared:
                made, its = _attend(_at(q, call.queries), _at(k, call.keys), _at(v, call.keys), None, scale)
                before, whole = _at(total, call.queries), _at(out, call.queries)
                whole.lerp_(made, torch.sigmoid(its - before)[..., None])
                before.copy_(torch.logaddexp(before, its))
        ctx.save_for_backward(query, key, value, output, totals)
        ctx.rows, ctx.scale = rows, scale
        return output.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """The gradients of query, key and value, call by call."""
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        gradient = gradients[0].contiguous().transpose(1, 2)
        found = [torch.empty_like(one) for one in saved[:3]]
        for row, calls in enumerate(ctx.rows):
            given = [one[row : row + 1] for one in (gradient, *saved)]
            into = dq, dk, dv = [one[row : row + 1] for one in found]
            for call in calls.own:  # Each is the first to say anything of its queries, as of the keys that stand there.
                of_q, *of_keys = _gradients(given, call, ctx.scale)
                _at(dq, call.queries).copy_(of_q)
                before = call.queries[0] - call.keys[0]
                here = before, before + call.queries[1] - call.queries[0]
                for whole, part in zip((dk, dv), of_keys, strict=True):
                    _at(whole, call.queries).copy_(_at(part, here))
                    if before:
                        _at(whole, (call.keys[0], call.queries[0])).add_(_at(part, (0, before)))
            for call in calls.shared:
                for whole, place, part in zip(
                    into, (call.queries, call.keys, call.keys), _gradients(given, call, ctx.scale), strict=True
                ):
                    _at(whole, place).add_(part)
            for whole in into:
                whole[:, :, calls.end :].zero_()
        return found[0], found[1], found[2], None, None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention [1, H, n, D] and the log-sum-exp of its scores [1, H, n]."""
    made = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=scale
    )
    return cast("tuple[Tensor, Tensor]", made)


def _gradients(given: Sequence[Tensor], call: Call, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """What a call adds to the gradients of its queries, keys and values; `given` are the row's incoming and saved ones."""
    incoming, query, key, value, output, total = given
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(_at(incoming, call.queries), _at(query, call.queries), _at(key, call.keys), _at(value, call.keys)),
        *(_at(output, call.queries), _at(total, call.queries), 0.0, False),
        attn_mask=call.mask,
        scale=scale,
    )
    return cast("tuple[Tensor, Tensor, Tensor]", found)


def _at(one: Tensor, place: tuple[int, int]) -> Tensor:
    return one.narrow(2, place[0], place[1] - place[0])
