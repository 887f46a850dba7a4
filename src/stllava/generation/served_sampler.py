"""A policy that speaks through servers which are started for it, once it is asked, and checked against it.

The check: before the servers start, the policy says greedily, in this process, what comes after a few of the first prompts.
Then it leaves this process's memory, and each server must say the same, with log-probabilities that are near.
"""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from stllava.config import EndpointOptions, SamplingOptions
from stllava.errors import ItemError, StllavaError
from stllava.generation.endpoint import EndpointSampler
from stllava.generation.sampler import Completion, Prompt
from stllava.generation.serving import ModelServers
from stllava.model.device import empty_cache
from stllava.model.load import load_policy
from stllava.model.prompt import ChatProcessor, virtual_role

CHECKED_PROMPTS = 4
"""Prompts that are compared."""
EQUAL_TEXTS = 2
"""Of these, so many texts must be the same: in 16 bits, rounding may tip a token of the others."""
CHECKED_TOKENS = 32
TOKEN_TOLERANCE = 0.05
"""Nats by which the mean token's log-probability may differ; servers round as they please."""


class ServedSampler:
    """A policy behind servers of its own."""

    def __init__(
        self, options: EndpointOptions, *, policy: Path, root: Path, audit: Path, blank: bool, chat: ChatProcessor
    ) -> None:
        """Images are relative to `root`; `blank` shows black instead. Servers are started when the policy is first asked."""
        self._options, self._policy, self._root, self._audit, self._blank = options, policy, root, audit, blank
        self._chat = chat
        self._checker = self._speaking(None)
        self._sampler: EndpointSampler | None = None
        self._servers: ModelServers | None = None
        self._batches = 0
        self._known = 0

    def _speaking(self, servers: ModelServers | None) -> EndpointSampler:
        """What writes requests, and sends them where there are servers."""
        here = self._options.model_copy(update={"url": "http://127.0.0.1/v1"})
        return EndpointSampler(
            here,
            root=self._root,
            blank=self._blank,
            virtual=virtual_role(self._chat),
            chat=self._chat,
            pool=servers.pool if servers is not None else None,
        )

    @property
    def device(self) -> str:
        """Where it computes."""
        return f"{self._options.serve} × {self._options.replicas}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the manifest must know of how it speaks."""
        if self._sampler is None:
            return ()
        known = f" and {self._known} of their log-probabilities" if self._known else ""
        return (f"{self.device} spoke for the policy; its greedy texts{known} were compared with the policy's own.",)

    def check(self, prompt: Prompt) -> None:
        """Raise ItemError when the prompt's images or its text cannot be used."""
        self._checker.check(prompt)

    def complete(
        self, prompts: Sequence[Prompt], *, k: int, sampling: SamplingOptions, seed: int
    ) -> list[tuple[Completion, ...]]:
        """K completions of every prompt; a completion depends on its prompt, its number and the seed alone."""
        if not prompts:
            return []
        if self._sampler is None or self._servers is None:
            self._begin(prompts)
        elif self._options.restart_every and self._batches % self._options.restart_every == 0:
            self._servers.restart()
        self._batches += 1
        assert self._sampler is not None
        return self._sampler.complete(prompts, k=k, sampling=sampling, seed=seed)

    def close(self) -> None:
        """End the servers."""
        if self._servers is not None:
            self._servers.close()
        self._servers = self._sampler = None

    def _begin(self, prompts: Sequence[Prompt]) -> None:
        """Start the servers and compare them with the policy."""
        expected = self._greedy(prompts)
        self._servers = ModelServers(self._options, self._policy, audit=self._audit)
        try:
            self._sampler = self._speaking(self._servers)
            self._compare(self._sampler, self._servers, expected)
        except BaseException:
            self.close()
            raise

    def _greedy(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Completion]]:
        """What the policy itself says to the first prompts that it can be asked."""
        from stllava.generation.local_sampler import LocalSampler

        local = LocalSampler(load_policy(self._policy), root=self._root, tokens=sys.maxsize, blank=self._blank)
        asked: list[Prompt] = []
        for prompt in dict.fromkeys(prompts):
            try:
                local.check(prompt)
            except ItemError:
                continue  # The stage leaves it out, or the server refuses it; neither is compared.
            asked.append(prompt)
            if len(asked) == CHECKED_PROMPTS:
                break
        greedy = SamplingOptions(temperature=0.0, top_k=0, top_p=1.0, max_new_tokens=CHECKED_TOKENS)
        said = local.complete(asked, k=1, sampling=greedy, seed=0)
        del local
        gc.collect()
        empty_cache()
        return [(prompt, completion) for prompt, (completion,) in zip(asked, said, strict=True)]

    def _compare(self, sampler: EndpointSampler, servers: ModelServers, expected: Sequence[tuple[Prompt, Completion]]) -> None:
        """Refuse servers that do not say what the policy says."""
        assert servers.pool is not None
        for member in servers.pool.members:
            equal, example = 0, ""
            for prompt, ours in expected:
                theirs, theirs_known = sampler.greedy(member.client, prompt, max_new_tokens=CHECKED_TOKENS)
                if theirs.text != ours.text:
                    example = f"it says {theirs.text[:80]!r} where the policy says {ours.text[:80]!r}"
                    continue
                equal += 1
                if ours.log_probability is not None and theirs_known is not None:
                    self._known += 1
                    apart = abs(ours.log_probability - theirs_known)
                    if apart > TOKEN_TOLERANCE * (len(ours.text.split()) + 2):
                        raise self._other_weights(
                            member.host, f"the log-probability of {ours.text[:80]!r} is {apart:.3f} nats from the policy's"
                        )
            if equal < min(EQUAL_TEXTS, len(expected)):
                raise self._other_weights(member.host, example)

    def _other_weights(self, host: str, how: str) -> StllavaError:
        """The error of a server that is not the policy."""
        return StllavaError(
            f"the server at {host} does not speak as {self._policy} does: {how}",
            expected="the same greedy text, with the same log-probability but for rounding",
            remedy="Check that nothing else listens on its port, and endpoint.arguments: dtype, quantization, chat template.",
        )
