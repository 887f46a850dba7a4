"""The keys and values of what a model has read: a cache that grows in place, and the prefixes of images kept for later."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from stllava.model.load import Prefix

Part = list[list[Tensor]]
"""Keys and values [P, H, D] of every layer."""
SPARE = 64
"""Fewest tokens of room made at once."""


class GrowingLayer(DynamicLayer):
    """A layer that writes into spare room behind its tokens, where transformers' own copies all of them at every step.

    The keys of a token's heads lie side by side, [R, room, H, D], so that columns are taken in whole lines.
    """

    buffers: list[Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [R, H, L, D]; returns all of them."""
        fresh = [key_states.transpose(1, 2), value_states.transpose(1, 2)]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.hold([one[:, :0] for one in fresh])
        length = self.keys.shape[-2] if self.keys is not None else 0
        end = length + key_states.shape[-2]
        if self.buffers[0].shape[1] < end:
            self.buffers = [_with_room(one[:, :length], end + max(length // 2, SPARE)) for one in self.buffers]
        for buffer, one in zip(self.buffers, fresh, strict=True):
            buffer[:, length:end] = one
        return self._show(end)

    def hold(self, lines: Sequence[Tensor]) -> None:
        """Replace keys and values by these, [R, C, H, D]."""
        self.buffers = list(lines)
        self._show(lines[0].shape[1])

    def lines(self) -> list[Tensor]:
        """Keys and values [R, C, H, D]."""
        return [one[:, : self.get_seq_length()] for one in self.buffers]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, in that order."""
        self.hold([one[indices] for one in self.lines()])

    def _show(self, end: int) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (one[:, :end].transpose(1, 2) for one in self.buffers)
        return self.keys, self.values


def _with_room(held: Tensor, room: int) -> Tensor:
    """A tensor of `room` tokens that begins with what is held."""
    buffer = held.new_empty(held.shape[0], room, *held.shape[2:])
    buffer[:, : held.shape[1]] = held
    return buffer


class AppendableCache(Cache):
    """A cache of growing layers, whatever windows the model has: what a token sees is said by masks."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    def argument_of(self, model: PreTrainedModel) -> dict[str, Any]:
        """This cache under the name that the model's forward has for it: another one from transformers 5.24 on."""
        names = signature(type(model).forward).parameters
        return {"cache" if "cache" in names else "past_key_values": self}

    def held(self) -> list[GrowingLayer]:
        """The layers."""
        return cast("list[GrowingLayer]", self.layers)

    def take(self, rows: Tensor, columns: Tensor) -> None:
        """Keep rows [R], and of each its columns [R, C]."""
        for layer in self.held():
            layer.hold([_taken(one, rows, columns) for one in layer.buffers])


def _taken(buffer: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    lines = buffer.flatten(0, 1).index_select(0, (rows[:, None] * buffer.shape[1] + columns).flatten())
    return lines.reshape(*columns.shape, *buffer.shape[2:])


class PrefixCache:
    """Prefixes that were computed and are kept, up to a number of tokens, for the next time they are spoken about."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.parts: dict[Prefix, Part] = {}

    def __contains__(self, prefix: Prefix) -> bool:
        return prefix in self.parts

    def keep_only(self, prefixes: set[Prefix]) -> None:
        """Drop what is not spoken about now."""
        self.parts = {prefix: part for prefix, part in self.parts.items() if prefix in prefixes}

    def add(self, cache: AppendableCache, rows: Mapping[Prefix, tuple[int, int]]) -> None:
        """Keep the prefixes that stand in these rows, with so many tokens, while there is room."""
        used = sum(len(part[0][0]) for part in self.parts.values())
        for prefix, (row, length) in rows.items():
            if used + length <= self.room:
                used += length
                self.parts[prefix] = [[one[row, :length].clone() for one in layer.lines()] for layer in cache.held()]

    def joined(
        self, cache: AppendableCache, new: Sequence[Prefix], wanted: Sequence[Prefix], lengths: Mapping[Prefix, int]
    ) -> AppendableCache:
        """A cache with a row for every wanted prefix: those kept, and the `new` ones that stand in the rows of `cache`."""
        self.add(cache, {prefix: (row, lengths[prefix]) for row, prefix in enumerate(new)})
        fresh = [layer.lines() for layer in cache.held()]
        width = max(lengths[prefix] for prefix in wanted)
        made = AppendableCache()
        for layer in range(len(fresh) or len(self.parts[wanted[0]])):
            rows = []
            for prefix in wanted:
                part = self.parts.get(prefix)
                lines = part[layer] if part else [one[new.index(prefix), : lengths[prefix]] for one in fresh[layer]]
                rows.append([_padded(one, width) for one in lines])
            keys, values = (torch.stack(several).transpose(1, 2) for several in zip(*rows, strict=True))
            made.update(keys, values, layer)
        return made


def _padded(lines: Tensor, width: int) -> Tensor:
    """[width, H, D] with empty tokens behind."""
    return torch.nn.functional.pad(lines, (0, 0, 0, 0, 0, width - len(lines)))
