"""A policy that speaks in this process, and how one comes to speak at all: here, or through a server.

Prompts about the same images become rows of a batch, made no wider than pays (`layout.branches_a_row`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from stllava.config import GenerationOptions, SamplingOptions
from stllava.errors import TextError
from stllava.generation.branches import Branch, Branches, Request
from stllava.generation.cache import PrefixCache
from stllava.generation.endpoint import EndpointSampler
from stllava.generation.sampler import Completion, Prompt, Sampler
from stllava.generation.tree_decoder import TreeDecoder
from stllava.generation.unpacked import decode_unpacked
from stllava.model.load import Policy, Prefix, Shapes, load_policy
from stllava.model.processor import read_processor
from stllava.model.prompt import ChatProcessor, open_turn, virtual_role
from stllava.tree.forward import Tree
from stllava.tree.guard import check_packing, check_reach
from stllava.tree.layout import ROOT, Node, cut_rows, share_branches

TOO_LONG = "longer than the context"


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
        branches = [Branch(index, number) for index in range(len(requests)) for number in range(k)]
        self.prefilled.keep_only({one.prefix for one in requests})
        grown = Branches(self.policy, requests, sampling=sampling, seed=seed)
        with torch.inference_mode():
            if self.policy.packs:
                decoder = TreeDecoder(grown, self.prefilled)
                for batch in self._batches(requests, branches, new=sampling.max_new_tokens):
                    decoder.decode(batch)
            else:
                for alone in self._one_by_one(requests, branches, new=sampling.max_new_tokens):
                    decode_unpacked(grown, alone)
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

    def _batches(self, requests: Sequence[Request], branches: Sequence[Branch], *, new: int) -> list[list[list[Branch]]]:
        """Batches of rows of branches, each within the tokens of the cache, and what cannot be joined apart."""
        by_prefix: dict[Prefix, list[Branch]] = {}
        for branch in branches:
            by_prefix.setdefault(requests[branch.request].prefix, []).append(branch)
        rows: list[list[Branch]] = []
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

    def _one_by_one(self, requests: Sequence[Request], branches: Sequence[Branch], *, new: int) -> list[list[Branch]]:
        """Batches of branches that each have a row of their own."""
        alike: dict[Shapes, list[Branch]] = {}
        for one in branches:
            alike.setdefault(self.policy.shapes(requests[one.request].prefix), []).append(one)
        batches = []
        for together in alike.values():
            asked = [requests[one.request] for one in together]
            lengths = [self.policy.length(one.prefix) + len(one.ids) + new for one in asked]
            batches += [[together[index] for index in part] for part in cut_rows(lengths, most=self.tokens)]
        return batches


def _scored(requests: Sequence[Request]) -> Tree:
    """A tree of the prompts about one set of images, as if they were learned: what the guard compares."""
    prefix = max(requests, key=lambda one: len(one.ids)).prefix
    asked = [one for one in requests if one.prefix == prefix]
    nodes: list[Node] = []
    for one in asked:
        nodes += [Node(one.ids[:1], ROOT, False), *([Node(one.ids[1:], len(nodes), True)] if len(one.ids) > 1 else [])]
    learned = [(index,) for index, node in enumerate(nodes) if node.learn]
    return Tree(prefix, tuple(nodes), tuple(learned))
