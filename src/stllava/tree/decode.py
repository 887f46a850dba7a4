"""Text from many prompts at once: each image is prefilled once, its prompts and their K completions run on copies.

The prefix of every distinct set of images goes through the model once; the prompts about them continue on copies of
its cache, and each prompt's completions on copies of theirs. Finished completions leave the batch.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache

from stllava.config import SamplingOptions
from stllava.errors import ItemError
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import prompt
from stllava.records import Message, Role

Item = TypeVar("Item")


@dataclass(frozen=True)
class Request:
    """A prompt to complete."""

    prefix: Prefix
    """The images and what stands before them."""
    ids: tuple[int, ...]
    """Tokens behind the prefix, at least one."""


def request(
    policy: Policy, messages: Sequence[Message], *, images: tuple[str, ...], root: Path, speaker: Role, blank: bool = False
) -> Request:
    """The prompt in which `speaker` speaks next."""
    pieces = prompt(policy.chat, messages, images=len(images), speaker=speaker)
    prefix = Prefix(pieces[0].text if images else "", images, root, blank)
    rest = pieces[1:] if images else pieces
    return Request(prefix, tuple(token for piece in rest for token in policy.tokens(piece.text)))


def usable_requests(
    policy: Policy,
    items: Sequence[Item],
    said: Callable[[Item], tuple[str, tuple[str, ...]]],
    *,
    root: Path,
    blank: bool = False,
) -> tuple[list[Item], list[Request], Counter[str]]:
    """The items whose images can be used, a request to answer what the user said of each, and the others by cause.

    `said` gives an item's text and images.
    """
    kept: list[Item] = []
    requests: list[Request] = []
    dropped: Counter[str] = Counter()
    for item in items:
        text, images = said(item)
        try:
            asked = request(
                policy, [Message(role="user", content=text)], images=images, root=root, speaker="assistant", blank=blank
            )
            policy.encode(asked.prefix)
        except ItemError as error:
            dropped[f"image {error.cause}"] += 1
        else:
            kept.append(item)
            requests.append(asked)
    return kept, requests, dropped


@torch.inference_mode()
def complete(
    policy: Policy, requests: Sequence[Request], *, k: int, sampling: SamplingOptions, seed: int
) -> list[tuple[str, ...]]:
    """K completions of every request, sampled with a generator of its own: the same call gives the same text."""
    if not requests:
        return []
    policy.model.eval()
    cache, mask, positions = _prefill_prefixes(policy, requests)
    logits, mask, positions = _run(policy, [request.ids for request in requests], cache, mask, positions, {})
    cache.batch_repeat_interleave(k)
    logits, mask, positions = (value.repeat_interleave(k, dim=0) for value in (logits, mask, positions))
    generator = torch.Generator(policy.device).manual_seed(seed)
    stop = torch.tensor(sorted(policy.stop_ids), device=policy.device)
    texts: list[list[int]] = [[] for _ in range(len(requests) * k)]
    alive = torch.arange(len(texts), device=policy.device)
    open_ended = torch.ones_like(alive, dtype=torch.bool)
    for step in range(sampling.max_new_tokens):
        token = pick(logits, sampling, generator)
        ended = torch.isin(token, stop)
        for place, value, speaks in zip(alive.tolist(), token.tolist(), (open_ended & ~ended).tolist(), strict=True):
            if speaks:
                texts[place].append(value)
        open_ended &= ~ended
        left = int(open_ended.sum())
        if left == 0 or step + 1 == sampling.max_new_tokens:
            break
        if left <= len(alive) // 2:
            rows = open_ended.nonzero()[:, 0]
            cache.batch_select_indices(rows)
            alive, token, mask, positions, open_ended = (value[rows] for value in (alive, token, mask, positions, open_ended))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = positions + 1
        logits = policy.model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=positions[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    spoken = [text.strip() for text in policy.tokenizer.batch_decode(texts, skip_special_tokens=True)]
    return [tuple(spoken[start : start + k]) for start in range(0, len(spoken), k)]


def pick(logits: Tensor, sampling: SamplingOptions, generator: torch.Generator) -> Tensor:
    """[R] a token for each row of logits [R, V]: greedy at temperature 0, else from the top-k, top-p part."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scores = logits.float() / sampling.temperature
    width = min(sampling.top_k or scores.shape[-1], scores.shape[-1])
    best, tokens = scores.topk(width, dim=-1)
    shares = best.softmax(dim=-1)
    before = shares.cumsum(dim=-1) - shares
    shares = shares.masked_fill(before >= sampling.top_p, 0.0)
    return tokens.gather(-1, torch.multinomial(shares, 1, generator=generator))[:, 0]


def _prefill_prefixes(policy: Policy, requests: Sequence[Request]) -> tuple[DynamicCache, Tensor, Tensor]:
    """A cache row, mask row [P] and last position for each request, each distinct prefix computed once."""
    cache = DynamicCache(config=policy.model.config.get_text_config())
    prefixes = list(dict.fromkeys(request.prefix for request in requests if request.prefix.images))
    none = torch.zeros(len(requests), dtype=torch.long, device=policy.device)
    if not prefixes:
        return cache, none[:, None][:, :0], none - 1
    if any(not request.prefix.images for request in requests):
        raise ValueError("requests with and without images cannot be decoded together")
    encoded = [policy.encode(prefix) for prefix in prefixes]
    mask, positions = _run(policy, [one.ids for one in encoded], cache, None, None, policy.join(encoded))[1:]
    place = {prefix: row for row, prefix in enumerate(prefixes)}
    rows = torch.tensor([place[request.prefix] for request in requests], device=policy.device)
    cache.batch_select_indices(rows)
    return cache, mask[rows], positions[rows]


def _run(
    policy: Policy,
    ids: Sequence[tuple[int, ...]],
    cache: DynamicCache,
    mask: Tensor | None,
    positions: Tensor | None,
    inputs: dict[str, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Feed left-padded tokens behind what the cache holds: last logits [R, V], mask [R, P + L], last positions [R]."""
    width = max(len(row) for row in ids)
    pad = policy.tokenizer.pad_token_id or 0
    tokens = torch.tensor([[pad] * (width - len(row)) + list(row) for row in ids], device=policy.device)
    fresh = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=policy.device)
    before = positions if positions is not None else fresh.new_full((len(ids),), -1)
    seen = torch.cat([mask, fresh], dim=1) if mask is not None else fresh
    places = before[:, None] + fresh.cumsum(dim=1)
    output = policy.model(
        input_ids=tokens,
        attention_mask=seen,
        position_ids=places.clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **inputs,
    )
    return output.logits[:, -1], seen, places[:, -1]
