"""Text for many prompts at once, grown as trees: an image's tokens are computed and cached once for all that is said of it.

A row of the batch is an image: its prefix, the prompts about it side by side, then, step by step, one token of every
branch, each seeing its own chain only. So a step reads an image's cache once for all its branches, and a branch costs
the cache its own tokens. Rows are made no wider than pays (`layout.branches_a_row`); finished branches leave.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from stllava.config import GenerationOptions, SamplingOptions
from stllava.errors import TextError
from stllava.generation.cache import AppendableCache, PrefixCache
from stllava.generation.endpoint import EndpointSampler
from stllava.generation.sampler import Completion, Prompt, Sampler
from stllava.model.load import Policy, Prefix, Shapes, load_policy
from stllava.model.processor import belonging, read_processor
from stllava.model.prompt import ChatProcessor, OpenTurn, open_turn, said_in, virtual_role
from stllava.records import content_id
from stllava.tree.forward import Tree, additive_mask, logits_at
from stllava.tree.guard import check_packing, check_reach
from stllava.tree.layout import ROOT, Node, cut_rows, share_branches

TOO_LONG = "longer than the context"
ANY = 1.0
"""A share no token's predecessors reach."""


@dataclass(frozen=True)
class Request:
    """A prompt in tokens."""

    prefix: Prefix
    """The images and what stands before them."""
    ids: tuple[int, ...]
    """Tokens behind the prefix, at least one."""
    turn: OpenTurn
    """The turn that it opens."""
    images: tuple[str, ...] = ()
    """The images that the prompt names; black ones have a prefix in common, and are told apart by these."""

    @property
    def ending(self) -> str:
        """What the chat template writes behind what is said."""
        return self.turn.ending


@dataclass(frozen=True)
class _Branch:
    """One completion on its way."""

    request: int
    """Which request it completes."""
    number: int
    """Which of its K completions it is."""


def open_sampler(
    options: GenerationOptions, *, policy: Path, root: Path, audit: Path, blank: bool = False, revisits: bool = False
) -> Sampler:
    """What speaks for the policy about images under `root`: itself in this process, or the server in the options.

    Images sent to a server are noted in the folder `audit`.
    """
    if options.endpoint.is_used:
        chat = cast(ChatProcessor, read_processor(policy))
        if options.endpoint.serve:
            from stllava.generation.served_sampler import ServedSampler

            return ServedSampler(options.endpoint, policy=policy, root=root, audit=audit, blank=blank, chat=chat)
        return EndpointSampler(options.endpoint, root=root, audit=audit, blank=blank, virtual=virtual_role(chat), chat=chat)
    return LocalSampler(load_policy(policy), root=root, tokens=options.max_cache_tokens, blank=blank, revisits=revisits)


class LocalSampler:
    """A policy that speaks in this process."""

    def __init__(self, policy: Policy, *, root: Path, tokens: int, blank: bool = False, revisits: bool = False) -> None:
        """Speak about images under `root`, black ones if `blank`, with at most `tokens` tokens in the cache at once.

        `revisits` says that images are spoken about again in the next call: half the tokens are then theirs to keep.
        """
        self.policy, self.root, self.blank = policy, root, blank
        self.tokens = tokens // 2 if revisits else tokens
        self.prefilled = PrefixCache(tokens // 2 if revisits else 0)
        self.reach = 0
        self.notes: list[str] = []
        self._black: dict[str, Prefix] = {}

    def close(self) -> None:
        """Nothing outlives it."""

    @property
    def device(self) -> str:
        """Where the weights are."""
        return str(self.policy.device)

    def check(self, prompt: Prompt) -> None:
        """Raise ItemError when the prompt's images or its text cannot be used."""
        request = self.request(prompt)
        length = self.policy.length(request.prefix) + len(request.ids)
        if length >= self.policy.context:
            raise TextError(TOO_LONG, f"{length} tokens leave no room for an answer in {self.policy.context}")

    def complete(
        self, prompts: Sequence[Prompt], *, k: int, sampling: SamplingOptions, seed: int
    ) -> list[tuple[Completion, ...]]:
        """K completions of every prompt; a completion depends on its prompt, its number and the seed alone."""
        requests = [self.request(one) for one in prompts]
        if not requests:
            return []
        self.policy.model.eval()
        self._check_packing(requests, new=sampling.max_new_tokens)
        branches = [_Branch(index, number) for index in range(len(requests)) for number in range(k)]
        self.prefilled.keep_only({one.prefix for one in requests})
        grown = TreeDecoder(self.policy, requests, sampling=sampling, seed=seed, prefilled=self.prefilled)
        with torch.inference_mode():
            if self.policy.packs:
                for batch in self._batches(requests, branches, new=sampling.max_new_tokens):
                    grown.decode_packed(batch)
            else:
                for alone in self._one_by_one(requests, branches, new=sampling.max_new_tokens):
                    grown.decode_unpacked(alone)
        said = [grown.completion(branch) for branch in branches]
        return [tuple(said[start : start + k]) for start in range(0, len(said), k)]

    def _check_packing(self, requests: Sequence[Request], *, new: int) -> None:
        """Compare packed and unpacked the first time, and ask of every longer chain whether the model sees so far."""
        reach = max(self.policy.length(one.prefix) + len(one.ids) for one in requests) + new
        first = check_packing(self.policy, [_scored(requests)]) if self.reach == 0 else None
        unpacked = first or (check_reach(self.policy, reach) if reach > self.reach else None)
        self.reach = max(self.reach, reach)
        self.notes += [unpacked] if unpacked else []

    def request(self, one: Prompt) -> Request:
        """The prompt in which the speaker speaks next, in tokens."""
        turn = open_turn(self.policy.chat, one.messages, images=len(one.images), speaker=one.speaker)
        pieces = turn.before
        prefix = Prefix(pieces[0].text if one.images else "", one.images, self.root, self.blank)
        if prefix.blank and prefix.images:
            # Black images that the model is shown alike are one: what they bring is computed once for all prompts.
            prefix = self._black.setdefault(self.policy.encode(prefix).digest, prefix)
        rest = pieces[1:] if one.images else pieces
        ids = tuple(token for piece in rest for token in self.policy.tokens(piece.text))
        return Request(prefix, ids, turn, one.images)

    def _batches(self, requests: Sequence[Request], branches: Sequence[_Branch], *, new: int) -> list[list[list[_Branch]]]:
        """Batches of rows of branches, each within the tokens of the cache, and what cannot be joined apart."""
        by_prefix: dict[Prefix, list[_Branch]] = {}
        for branch in branches:
            by_prefix.setdefault(requests[branch.request].prefix, []).append(branch)
        rows: list[list[_Branch]] = []
        lengths: list[int] = []
        for prefix, together in by_prefix.items():
            root = self.policy.length(prefix)
            prompts = [len(requests[branch.request].ids) for branch in together]
            for part in share_branches(root, prompts, new=new, most=self.tokens):
                row = [together[index] for index in part]
                asked = sum(len(requests[index].ids) for index in {branch.request for branch in row})
                rows.append(row)
                lengths.append(root + asked + len(row) * new)
        alike: dict[tuple[bool, Shapes], list[int]] = {}
        for place, row in enumerate(rows):
            prefix = requests[row[0].request].prefix
            alike.setdefault((bool(prefix.images), self.policy.shapes(prefix)), []).append(place)
        batches = []
        for places in alike.values():
            cut = cut_rows([lengths[place] for place in places], most=self.tokens)
            batches += [[rows[places[index]] for index in part] for part in cut]
        return batches

    def _one_by_one(self, requests: Sequence[Request], branches: Sequence[_Branch], *, new: int) -> list[list[_Branch]]:
        """Batches of branches that each have a row of their own."""
        alike: dict[Shapes, list[_Branch]] = {}
        for one in branches:
            alike.setdefault(self.policy.shapes(requests[one.request].prefix), []).append(one)
        batches = []
        for together in alike.values():
            asked = [requests[one.request] for one in together]
            lengths = [self.policy.length(one.prefix) + len(one.ids) + new for one in asked]
            batches += [[together[index] for index in part] for part in cut_rows(lengths, most=self.tokens)]
        return batches


class TreeDecoder:
    """What has been said so far in answer to some requests."""

    def __init__(
        self, policy: Policy, requests: Sequence[Request], *, sampling: SamplingOptions, seed: int, prefilled: PrefixCache
    ) -> None:
        self.policy, self.requests, self.sampling, self.seed = policy, requests, sampling, seed
        self.prefilled = prefilled
        self.stop_ids = policy.stop_ids
        self.stop = torch.tensor(sorted(self.stop_ids), device=policy.device)
        self.said: dict[_Branch, list[int]] = {}
        self.sums: dict[_Branch, float] = {}

    def completion(self, branch: _Branch) -> Completion:
        """What a branch came to; its log-probability where its text, in tokens again, is what was sampled."""
        tokens = self.said[branch]
        ended = bool(tokens) and tokens[-1] in self.stop_ids
        spoken = tokens[:-1] if ended else tokens
        text = str(self.policy.tokenizer.decode(spoken, skip_special_tokens=True)).strip()
        known = ended and self._learned(text, self.requests[branch.request]) == tokens
        return Completion(text, self.sums[branch] if known else None, finished=ended)

    def _learned(self, text: str, request: Request) -> list[int]:
        """The tokens that training makes of a text said in answer to a request; none where it cannot."""
        try:
            return list(self.policy.tokens(said_in(self.policy.chat, request.turn, text).text))
        except TextError:
            return []

    def decode_unpacked(self, branches: Sequence[_Branch]) -> None:
        """Let transformers' own generate complete branches, a row each: for models whose trees are not packed."""
        requests = [self.requests[branch.request] for branch in branches]
        chains = [(*self.policy.encode(one.prefix).ids, *one.ids) if one.prefix.images else one.ids for one in requests]
        width, pad = max(map(len, chains)), self.policy.tokenizer.pad_token_id or 0
        left = [width - len(chain) for chain in chains]
        device = self.policy.device
        encoded = [self.policy.encode(one.prefix) for one in requests if one.prefix.images]
        picker = _Picker(self, branches, width)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.sampling.max_new_tokens,
            eos_token_id=self.stop.tolist(),
            pad_token_id=pad,
        )
        with _settings_alone(self.policy.model, settings):
            generate = self.policy.model.generate
            generate(  # type: ignore[operator]
                input_ids=torch.tensor([[pad] * gap + list(ids) for gap, ids in zip(left, chains, strict=True)], device=device),
                attention_mask=torch.tensor([[0] * gap + [1] * (width - gap) for gap in left], device=device),
                **self.policy.join(encoded),
                **self.policy.kinds([one.prefix for one in requests], left=left, width=width),
                generation_config=settings,
                logits_processor=LogitsProcessorList([picker]),
            )

    def decode_packed(self, rows: Sequence[Sequence[_Branch]]) -> None:
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
        position = torch.tensor([self.before(branch) for branch in branches], device=device)
        uniform = self.uniforms(branches)
        sees = torch.zeros(len(rows), max(map(len, rows)), columns.shape[-1], dtype=torch.bool, device=device)
        sees[row, slot] = columns[origin.to(device)]
        alive = torch.arange(len(branches), device=device)
        for step in range(self.sampling.max_new_tokens):
            token, value = sample_token(logits, self.sampling, uniform[alive, step])
            self.note([branches[index] for index in alive.tolist()], token, value)
            going = ~torch.isin(token, self.stop) & (position < self.policy.context)
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

    def before(self, branch: _Branch) -> int:
        """Tokens of the prompt that a branch goes on from."""
        request = self.requests[branch.request]
        return self.policy.length(request.prefix) + len(request.ids)

    def note(self, branches: Sequence[_Branch], tokens: Tensor, values: Tensor) -> None:
        """Write down what was just said."""
        for branch, token, value in zip(branches, tokens.tolist(), values.tolist(), strict=True):
            self.said.setdefault(branch, []).append(token)
            self.sums[branch] = self.sums.get(branch, 0.0) + value

    def uniforms(self, branches: Sequence[_Branch]) -> Tensor:
        """[A, T] numbers between 0 and 1 that depend on each branch's own prompt and number and the seed alone."""
        keys: dict[int, str] = {}
        drawn = bytearray()
        for branch in branches:
            if branch.request not in keys:
                one = self.requests[branch.request]
                prefix = one.prefix
                keys[branch.request] = content_id(self.seed, prefix.text, list(one.images), prefix.blank, list(one.ids))
            key = f"{keys[branch.request]} {branch.number}".encode()
            drawn += hashlib.shake_256(key).digest(8 * self.sampling.max_new_tokens)
        bits = np.frombuffer(drawn, dtype="<u8").reshape(len(branches), -1)
        return torch.from_numpy((bits >> 11) * 2.0**-53).float().to(self.policy.device)

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
                    past_key_values=cache,
                    use_cache=True,
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
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            ).logits
        return logits[0]


def sample_token(logits: Tensor, sampling: SamplingOptions, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """[A] a token for each row of logits [A, V], and its untempered log-probability.

    Greedy at temperature 0, else the token at which the cumulated shares of the top-k, top-p part, in the order of the
    vocabulary, pass `uniform` [A]: noise in the logits then moves the choice only where a share begins or ends.
    """
    scores = logits.float()
    if sampling.temperature == 0:
        token = scores.argmax(dim=-1)
    else:
        shares, tokens = _shares(scores / sampling.temperature, sampling)
        sums = shares.to(torch.float32 if shares.device.type == "mps" else torch.float64).cumsum(dim=-1)
        place = torch.searchsorted(sums, uniform[:, None].to(sums.dtype) * sums[:, -1:], right=True)
        place = place.minimum((sums < sums[:, -1:]).sum(dim=-1, keepdim=True))
        token = (tokens.gather(-1, place) if tokens is not None else place)[:, 0]
    return token, scores.gather(-1, token[:, None])[:, 0] - scores.logsumexp(dim=-1)


def _shares(scores: Tensor, sampling: SamplingOptions) -> tuple[Tensor, Tensor | None]:
    """The shares [A, W] of the tokens that may be said, and which tokens [A, W], in order; None: the whole vocabulary."""
    vocabulary = scores.shape[-1]
    width = min(sampling.top_k or vocabulary, vocabulary)
    if width == vocabulary and sampling.top_p == ANY:
        return scores.softmax(dim=-1), None
    best, tokens = scores.topk(width, dim=-1)
    shares = best.softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares
    shares = shares.masked_fill(before >= sampling.top_p, 0.0)
    if width == vocabulary:
        return torch.zeros_like(scores).scatter_(-1, tokens, shares), None
    order = tokens.argsort(dim=-1)
    return shares.gather(-1, order), tokens.gather(-1, order)


@contextmanager
def _settings_alone(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Let `generate` know these settings only: else it adds a model's own, such as the repetition penalty of Qwen2.5-VL."""
    before, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = before


class _Picker(LogitsProcessor):
    """Makes generate say what `pick` picks."""

    def __init__(self, growth: TreeDecoder, branches: Sequence[_Branch], width: int) -> None:
        self.growth, self.branches, self.width = growth, branches, width
        self.uniform = growth.uniforms(branches)
        self.open = torch.ones(len(branches), dtype=torch.bool, device=growth.policy.device)
        self.position = torch.tensor([growth.before(branch) for branch in branches], device=growth.policy.device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores that leave one token to choose."""
        token, value = sample_token(scores, self.growth.sampling, self.uniform[:, input_ids.shape[1] - self.width])
        going = self.open.nonzero()[:, 0]
        self.growth.note([self.branches[index] for index in going.tolist()], token[going], value[going])
        self.open &= ~torch.isin(token, self.growth.stop) & (self.position < self.growth.policy.context)
        self.position += 1
        return cast(torch.FloatTensor, torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0))


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


def _scored(requests: Sequence[Request]) -> Tree:
    """A tree of the prompts about one set of images, as if they were learned: what the guard compares."""
    prefix = max(requests, key=lambda one: len(one.ids)).prefix
    asked = [one for one in requests if one.prefix == prefix]
    nodes: list[Node] = []
    for one in asked:
        nodes += [Node(one.ids[:1], ROOT, False), *([Node(one.ids[1:], len(nodes), True)] if len(one.ids) > 1 else [])]
    learned = [(index,) for index, node in enumerate(nodes) if node.learn]
    return Tree(prefix, tuple(nodes), tuple(learned))
