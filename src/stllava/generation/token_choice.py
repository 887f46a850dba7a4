"""Which token is said next, given a model's logits and a number drawn for it."""

import torch
from torch import Tensor

from stllava.config import SamplingOptions

ANY = 1.0
"""A share no token's predecessors reach."""


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
