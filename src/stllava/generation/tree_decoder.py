"""Text for many prompts at once, grown as trees: an image's tokens are computed and cached once for all that is said of it.

A row of the batch is an image: its prefix, the prompts about it side by side, then, step by step, one token of every
branch, each seeing its own chain only. So a step reads an image's cache once for all its branches, and a branch costs
the cache its own tokens. Finished branches leave.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stllava.generation.branches import Branch, Branches
from stllava.generation.cache import AppendableCache, PrefixCache
from stllava.generation.token_choice import sample_token
from stllava.model.load import Prefix
from stllava.model.processor import belonging
from stllava.tree.forward import additive_mask, logits_at


class TreeDecoder:
    """Lets branches grow, those about the same images in a row."""

    def __init__(self, grown: Branches, prefilled: PrefixCache) -> None:
        self.grown, self.prefilled = grown, prefilled
        self.policy, self.requests, self.sampling = grown.policy, grown.requests, grown.sampling

    def decode(self, rows: Sequence[Sequence[Branch]]) -> None:
        """Complete rows of branches, every row about one set of images; at the end of the context a branch stops."""
        device = self.policy.device
        cache, seen = self._prefill([self.requests[row[0].request].prefix for row in rows])
        asked = [list(dict.fromkeys(branch.request for branch in row)) for row in rows]
        logits, columns = self._ask(cache, seen, asked)
        place = {(row, request): index for index, (row, request) in enumerate((r, q) for r, a in enumerate(asked) for q in a)}
        branches = [branch for row in rows for branch in row]
        where = [(index, slot) for index, row in enumerate(rows) for slot in range(len(row))]
        origin = torch.tensor([place[row, branch.request] for (row, _), branch in zip(where, branches, strict=True)])
        logits = logits[origin.to(device)]
        row, slot = torch.tensor(where, device=device).unbind(1)
        position = torch.tensor([self.grown.before(branch) for branch in branches], device=device)
        uniform = self.grown.uniforms(branches)
        sees = torch.zeros(len(rows), max(map(len, rows)), columns.shape[-1], dtype=torch.bool, device=device)
        sees[row, slot] = columns[origin.to(device)]
        alive = torch.arange(len(branches), device=device)
        for step in range(self.sampling.max_new_tokens):
            token, value = sample_token(logits, self.sampling, uniform[alive, step])
            self.grown.note([branches[index] for index in alive.tolist()], token, value)
            going = ~torch.isin(token, self.grown.stop) & (position < self.policy.context)
            if step + 1 == self.sampling.max_new_tokens or not bool(going.any()):
                break
            alive, token, row, slot, position = (one[going] for one in (alive, token, row, slot, position))
            if len(alive) <= sees.shape[0] * sees.shape[1] // 2:
                sees, row, slot = _compact(cache, sees, row, slot)
            own = torch.eye(sees.shape[1], dtype=torch.bool, device=device).expand(len(sees), -1, -1)
            sees = torch.cat([sees, own], dim=-1)
            ids, positions = (torch.zeros(sees.shape[:2], dtype=torch.long, device=device) for _ in range(2))
            ids[row, slot], positions[row, slot] = token, position
            logits = self._run(cache, ids, positions, sees, row, slot)
            position = position + 1

    def _prefill(self, prefixes: Sequence[Prefix]) -> tuple[AppendableCache, Tensor]:
        """The cache of each row's prefix, each distinct one computed once, and which of its columns [R, P] hold a token."""
        device = self.policy.device
        if not prefixes[0].images:
            return AppendableCache(), torch.zeros(len(prefixes), 0, dtype=torch.bool, device=device)
        distinct = list(dict.fromkeys(prefixes))
        new = [prefix for prefix in distinct if prefix not in self.prefilled]
        lengths = {prefix: self.policy.length(prefix) for prefix in distinct}
        cache = AppendableCache()
        if new:
            encoded = [self.policy.encode(prefix) for prefix in new]
            width, pad = max(lengths[prefix] for prefix in new), self.policy.tokenizer.pad_token_id or 0
            first = torch.zeros(1, dtype=torch.long, device=device)
            with (
                belonging(),
                logits_at(self.policy.model, first, first),
            ):  # No logits are needed, and of the last layer keys and values only.
                self.policy.model(
                    input_ids=torch.tensor([[*one.ids, *[pad] * (width - len(one.ids))] for one in encoded], device=device),
                    attention_mask=torch.tensor(
                        [[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in encoded], device=device
                    ),
                    position_ids=torch.arange(width, device=device).expand(len(new), -1),
                    use_cache=True,
                    **cache.argument_of(self.policy.model),
                    **self.policy.join(encoded),
                )
        if len(new) < len(distinct):
            cache = self.prefilled.joined(cache, new, distinct, lengths)
        elif self.prefilled.room:
            self.prefilled.add(cache, {prefix: (row, lengths[prefix]) for row, prefix in enumerate(new)})
        place = {prefix: row for row, prefix in enumerate(distinct)}
        rows = torch.tensor([place[prefix] for prefix in prefixes], device=device)
        if len(distinct) < len(prefixes):
            cache.batch_select_indices(rows)
        there = torch.tensor([lengths[prefix] for prefix in prefixes], device=device)[:, None]
        return cache, torch.arange(max(lengths.values()), device=device) < there

    def _ask(self, cache: AppendableCache, seen: Tensor, asked: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Feed every row its prompts side by side: the logits [Q, V] behind each, and the columns [Q, C] that each sees."""
        device = self.policy.device
        width = max(sum(len(self.requests[index].ids) for index in row) for row in asked)
        count = len(asked)
        ids, positions = np.zeros((count, width), dtype=np.int64), np.zeros((count, width), dtype=np.int64)
        own = np.zeros((count, width, width), dtype=bool)
        own[:, np.arange(width), np.arange(width)] = True
        ends, columns, lengths = [], [], seen.sum(dim=1).tolist()
        for place, questions in enumerate(asked):
            start = 0
            for index in questions:
                tokens = self.requests[index].ids
                end = start + len(tokens)
                ids[place, start:end] = tokens
                positions[place, start:end] = lengths[place] + np.arange(len(tokens))
                own[place, start:end, start:end] = np.tri(len(tokens), dtype=bool)
                ends.append((place, end - 1))
                columns.append((start <= np.arange(width)) & (np.arange(width) < end))
                start = end
        rows, lasts = torch.tensor(ends, device=device).unbind(1)
        sees = torch.cat([seen[:, None].expand(-1, width, -1), torch.from_numpy(own).to(device)], dim=-1)
        logits = self._run(cache, torch.from_numpy(ids).to(device), torch.from_numpy(positions).to(device), sees, rows, lasts)
        return logits, torch.cat([seen[rows], torch.from_numpy(np.stack(columns)).to(device)], dim=-1)

    def _run(
        self, cache: AppendableCache, ids: Tensor, positions: Tensor, sees: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        """One forward behind the cache: logits [A, V] at some places of the tokens [R, L] that see `sees` [R, L, C]."""
        model = self.policy.model
        mask = additive_mask(sees, model)[:, None]
        with logits_at(model, rows, columns):
            logits: Tensor = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **cache.argument_of(model)
            ).logits
        return logits[0]


def _compact(cache: AppendableCache, sees: Tensor, row: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Drop rows, slots and columns that no branch needs any more; returns the new sees [R, B, C], rows and slots."""
    rows, row = row.unique(return_inverse=True)
    first = torch.searchsorted(row, torch.arange(len(rows), device=row.device))
    place = torch.arange(len(row), device=row.device) - first[row]
    kept = torch.zeros(len(rows), int(place.max()) + 1, sees.shape[-1], dtype=torch.bool, device=sees.device)
    kept[row, place] = sees[rows[row], slot]
    needed = kept.any(dim=1)
    width = int(needed.sum(dim=1).max())
    columns = (~needed).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
    cache.take(rows, columns)
    return kept.gather(2, columns[:, None].expand(-1, kept.shape[1], -1)), row, place
