"""Prompts in tokens, and what has been said so far in answer to them; how tokens come about, packed or not, is others' work."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stllava.config import SamplingOptions
from stllava.errors import TextError
from stllava.generation.sampler import Completion
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import OpenTurn, said_in
from stllava.records import content_id


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


@dataclass(frozen=True)
class Branch:
    """One completion on its way."""

    request: int
    """Which request it completes."""
    number: int
    """Which of its K completions it is."""


class Branches:
    """What has been said so far in answer to some requests."""

    def __init__(self, policy: Policy, requests: Sequence[Request], *, sampling: SamplingOptions, seed: int) -> None:
        self.policy, self.requests, self.sampling, self.seed = policy, requests, sampling, seed
        self.stop_ids = policy.stop_ids
        self.stop = torch.tensor(sorted(self.stop_ids), device=policy.device)
        self.said: dict[Branch, list[int]] = {}
        self.sums: dict[Branch, float] = {}

    def completion(self, branch: Branch) -> Completion:
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

    def before(self, branch: Branch) -> int:
        """Tokens of the prompt that a branch goes on from."""
        request = self.requests[branch.request]
        return self.policy.length(request.prefix) + len(request.ids)

    def note(self, branches: Sequence[Branch], tokens: Tensor, values: Tensor) -> None:
        """Write down what was just said."""
        for branch, token, value in zip(branches, tokens.tolist(), values.tolist(), strict=True):
            self.said.setdefault(branch, []).append(token)
            self.sums[branch] = self.sums.get(branch, 0.0) + value

    def uniforms(self, branches: Sequence[Branch]) -> Tensor:
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
