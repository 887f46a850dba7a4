"""The keys and values of what a model has read: a cache that grows in place, and the prefixes of images kept for later."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from stllava.model.load import Prefix

Part = list[tuple[Tensor, Tensor]]
"""Keys and values [1, H, P, D] of every layer."""


class GrowingLayer(DynamicLayer):
    """A layer that writes into spare room behind its tokens: transformers' own copies all of them at every step."""

    buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [R, H, L, D]; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.set(key_states, value_states)
            return key_states, value_states
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if self.buffers is None or self.buffers[0].shape[-2] < end:
            held = (cast(Tensor, self.keys), cast(Tensor, self.values))
            room = end + max(length // 2, 64)
            self.buffers = (_with_room(held[0], room), _with_room(held[1], room))
        keys, values = self.buffers
        keys[:, :, length:end], values[:, :, length:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def set(self, keys: Tensor, values: Tensor) -> None:
        """Replace what is held."""
        self.keys, self.values, self.buffers = keys, values, None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows, in that order."""
        self.set(cast(Tensor, self.keys)[indices], cast(Tensor, self.values)[indices])


def _with_room(held: Tensor, room: int) -> Tensor:
    """A tensor of `room` tokens that begins with what is held."""
    buffer = held.new_empty(*held.shape[:2], room, held.shape[3])
    buffer[:, :, : held.shape[2]] = held
    return buffer


class GrowingCache(Cache):
    """A cache of growing layers, whatever windows the model has: what a token sees is said by masks."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    def held(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [R, H, C, D] of every layer."""
        layers = cast("list[GrowingLayer]", self.layers)
        return [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]

    def take(self, rows: Tensor, columns: Tensor) -> None:
        """Keep rows [R], and of each its columns [R, C]."""
        for layer, (keys, values) in zip(self.layers, self.held(), strict=True):
            cast(GrowingLayer, layer).set(*(_gathered(one[rows], columns) for one in (keys, values)))


def _gathered(held: Tensor, columns: Tensor) -> Tensor:
    return held.gather(2, columns[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3]))


class Prefilled:
    """Prefixes that were computed and are kept, up to a number of tokens, for the next time they are spoken about."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.parts: dict[Prefix, Part] = {}

    def __contains__(self, prefix: Prefix) -> bool:
        return prefix in self.parts

    def keep_only(self, prefixes: set[Prefix]) -> None:
        """Drop what is not spoken about now."""
        self.parts = {prefix: part for prefix, part in self.parts.items() if prefix in prefixes}

    def add(self, cache: GrowingCache, rows: Mapping[Prefix, tuple[int, int]]) -> None:
        """Keep the prefixes that stand in these rows, with so many tokens, while there is room."""
        used = sum(part[0][0].shape[2] for part in self.parts.values())
        for prefix, (row, length) in rows.items():
            if used + length <= self.room:
                used += length
                self.parts[prefix] = [
                    (keys[row : row + 1, :, :length].clone(), values[row : row + 1, :, :length].clone())
                    for keys, values in cache.held()
                ]

    def joined(
        self, cache: GrowingCache, new: Sequence[Prefix], wanted: Sequence[Prefix], lengths: Mapping[Prefix, int]
    ) -> GrowingCache:
        """A cache with a row for every wanted prefix: those kept, and the `new` ones that stand in the rows of `cache`."""
        self.add(cache, {prefix: (row, lengths[prefix]) for row, prefix in enumerate(new)})
        fresh = cache.held()
        width = max(lengths[prefix] for prefix in wanted)
        made = GrowingCache()
        for layer in range(len(fresh) or len(self.parts[wanted[0]])):
            rows = []
            for prefix in wanted:
                part = self.parts.get(prefix)
                if part is None:
                    row, length = new.index(prefix), lengths[prefix]
                    rows.append(tuple(one[row : row + 1, :, :length] for one in fresh[layer]))
                else:
                    rows.append(part[layer])
            keys, values = (torch.cat([_padded(one, width) for one in several]) for several in zip(*rows, strict=True))
            made.update(keys, values, layer)
        return made


def _padded(held: Tensor, width: int) -> Tensor:
    """[1, H, width, D] with empty tokens behind."""
    return torch.nn.functional.pad(held, (0, 0, 0, width - held.shape[2]))
