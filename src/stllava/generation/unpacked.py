"""Branches in rows of their own, by transformers' own generate: for models whose trees are not packed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from stllava.generation.branches import Branch, Branches
from stllava.generation.token_choice import sample_token


def decode_unpacked(grown: Branches, branches: Sequence[Branch]) -> None:
    """Let generate complete branches, a row each."""
    requests = [grown.requests[branch.request] for branch in branches]
    chains = [(*grown.policy.encode(one.prefix).ids, *one.ids) if one.prefix.images else one.ids for one in requests]
    width, pad = max(map(len, chains)), grown.policy.tokenizer.pad_token_id or 0
    left = [width - len(chain) for chain in chains]
    device = grown.policy.device
    encoded = [grown.policy.encode(one.prefix) for one in requests if one.prefix.images]
    picker = _Picker(grown, branches, width)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=grown.sampling.max_new_tokens,
        eos_token_id=grown.stop.tolist(),
        pad_token_id=pad,
    )
    with _settings_alone(grown.policy.model, settings):
        generate = grown.policy.model.generate
        generate(  # type: ignore[operator]
            input_ids=torch.tensor([[pad] * gap + list(ids) for gap, ids in zip(left, chains, strict=True)], device=device),
            attention_mask=torch.tensor([[0] * gap + [1] * (width - gap) for gap in left], device=device),
            **grown.policy.join(encoded),
            **grown.policy.kinds([one.prefix for one in requests], left=left, width=width),
            generation_config=settings,
            logits_processor=LogitsProcessorList([picker]),
        )


@contextmanager
def _settings_alone(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Let `generate` know these settings only: else it adds a model's own, such as the repetition penalty of Qwen2.5-VL."""
    before, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = before


class _Picker(LogitsProcessor):
    """Makes generate say what `sample_token` chooses."""

    def __init__(self, grown: Branches, branches: Sequence[Branch], width: int) -> None:
        self.grown, self.branches, self.width = grown, branches, width
        self.uniform = grown.uniforms(branches)
        self.open = torch.ones(len(branches), dtype=torch.bool, device=grown.policy.device)
        self.position = torch.tensor([grown.before(branch) for branch in branches], device=grown.policy.device)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores that leave one token to choose."""
        token, value = sample_token(scores, self.grown.sampling, self.uniform[:, input_ids.shape[1] - self.width])
        going = self.open.nonzero()[:, 0]
        self.grown.note([self.branches[index] for index in going.tolist()], token[going], value[going])
        self.open &= ~torch.isin(token, self.grown.stop) & (self.position < self.grown.policy.context)
        self.position += 1
        return cast(torch.FloatTensor, torch.full_like(scores, -torch.inf).scatter_(-1, token[:, None], 0.0))
