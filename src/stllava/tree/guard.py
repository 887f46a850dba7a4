"""Guards: whether a model can be packed.

Packing is tried on the model itself, for not every architecture computes a tree as it does a chain: positions along
several axes, windows shorter than a chain, attention that runs both ways among image tokens and layers that carry a state
make a packed sequence another input than the chains it stands for. Such a model is used unpacked: slower, and right.

How far is too far depends on the precision, so nothing is compared with a fixed number alone: packed and unpacked may differ
by about as much as the model's own results differ when every layer rounds another way; and what is said behind one prompt
may not change at all with the words of another prompt beside it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from stllava.model.load import Policy
from stllava.tree.forward import Tree, collate, longest_chain, some_chains, token_log_probabilities
from stllava.tree.layout import ROOT, Node

CHAINS = 2
SIBLING = "What else is there? Nothing else of note, and no other finding in this image."
"""What stands before the chains that are compared, forwards and backwards: words that no chain may feel."""
NEAR = 32
"""Tokens of a chain, from its first, in which a sibling would be felt: some layers forget soon."""
ROUNDINGS = 2
"""How often the model is computed with other roundings."""
TIMES_SPREAD, SHARE_OF_SPREAD = 3.0, 0.5
"""How far packed may be from unpacked, and how far a sibling may move a chain, in the model's own spread."""
FLOOR = {torch.float32: 1e-4}
FLOOR_IN_HALF = 1e-3
"""Nats a token that are no difference."""
STATELESS = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "attention", "moe", "dense", "sparse", "mlp"}
)
"""Kinds of layers, by the names in transformers' configurations, that read other tokens by masked attention or not at all."""
LAYER_KINDS = ("layer_types", "layers_block_type", "block_types")
"""What configurations call the list of their layers' kinds."""


@dataclass(frozen=True)
class PackingGap:
    """How a packed tree compares with its chains computed alone, in nats a token on average."""

    gap: float
    """Between packed and unpacked; infinite where the model refuses a packed tree."""
    leak: float
    """By which the first tokens of packed chains move when other words stand beside them."""
    spread: float
    """By which unpacked chains move when every layer of the language model rounds another way."""
    floor: float
    """Below which nothing counts as a difference."""
    refusal: str = ""
    """What the model said to a packed tree where it refused."""

    @property
    def limit(self) -> float:
        """The largest gap that is only rounding."""
        return max(self.floor, TIMES_SPREAD * self.spread)

    @property
    def fault(self) -> str | None:
        """Why the model must not be packed, if so."""
        if self.refusal:
            return f"This model does not take packed trees ({self.refusal})"
        if self.leak > max(self.floor, SHARE_OF_SPREAD * self.spread):
            return f"In a packed tree of this model one prompt changes what follows another, by {self.leak:.2g} nats a token"
        if self.gap > self.limit:
            return (
                f"Packed and unpacked log-probabilities of this model differ by {self.gap:.2g} nats a token, more than the "
                f"{self.limit:.2g} that rounding explains"
            )
        return None


def check_packing(policy: Policy, trees: Sequence[Tree]) -> str | None:
    """Score a few chains of the longest tree packed and unpacked; where they differ, do not pack. Returns why not."""
    if not policy.packs:
        return None
    tree = max(trees, key=lambda tree: longest_chain(policy, tree))
    fault = _states(policy.model)
    if fault is None and (far := check_reach(policy, longest_chain(policy, tree))):
        return far
    return _unpack(policy, fault or _kinds(policy, tree) or measure_packing(policy, tree).fault)


def check_reach(policy: Policy, length: int) -> str | None:
    """Do not pack where a window is narrower than a chain of `length` tokens; within it every token is seen."""
    config = policy.model.config.get_text_config().to_dict()
    kinds = config.get("layer_types")
    window: int | None = config.get("sliding_window") or config.get("attention_chunk_size")
    slides = kinds is None or any(kind != "full_attention" for kind in kinds)
    narrow = policy.packs and window is not None and slides and length > window
    return _unpack(policy, f"This model sees {window} tokens back in some layers and has {length} to see" if narrow else None)


@torch.inference_mode()
def measure_packing(policy: Policy, tree: Tree) -> PackingGap:
    """Compare a few chains of a tree, and a made-up sibling before them, packed and unpacked, in the model's precision."""
    policy.model.eval()
    words = policy.tokens(SIBLING)
    few = some_chains(tree, CHAINS)
    if sum(len(node.ids) for node in few.nodes) <= len(few.nodes):  # of a chain of one token there is nothing to compare
        few = Tree(few.prefix, (Node(words, ROOT, False),), ((0,),))
    one, other = (_beside(few, sibling) for sibling in (words, words[::-1]))
    packs, floor = policy.packs, FLOOR.get(policy.model.dtype, FLOOR_IN_HALF)
    try:
        policy.packs = False
        alone = _values(policy, one)
        moved = []
        for seed in range(ROUNDINGS):
            with _rounded_otherwise(policy.model, seed=seed):
                moved.append(_apart(alone, _values(policy, one)))
        spread = sum(moved) / ROUNDINGS
        policy.packs = True
        try:
            packed, beside_other = _values(policy, one), _values(policy, other)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return PackingGap(inf, inf, spread, floor, " ".join(str(error).split())[:200])
    finally:
        policy.packs = packs
    near = [[values[:NEAR] for values in chains] for chains in (packed, beside_other)]
    return PackingGap(_apart(packed, alone), _apart(*near), spread, floor)


def _unpack(policy: Policy, fault: str | None) -> str | None:
    """Pack no more if there is a fault; returns the sentence that says so."""
    if fault is None:
        return None
    policy.packs = False
    return f"{fault}: every answer is computed as a sequence of its own, which takes longer."


def _states(model: PreTrainedModel) -> str | None:
    """A model some of whose layers read other tokens not by masked attention, but through a state, say, or an index."""
    config = model.config.get_text_config().to_dict()
    kinds = {kind for name in LAYER_KINDS for kind in config.get(name) or ()} - STATELESS
    classes = {type(part).__name__ for part in model.modules() if isinstance(part, PreTrainedModel) and part._is_stateful}
    # Mamba, gated delta rules, short convolutions: all have one of these, also where no configuration says so.
    parts = model.get_decoder().modules()
    layers = {type(part).__name__ for part in parts if isinstance(part, nn.Conv1d | nn.RNNBase)}
    found = sorted(kinds or layers or classes)
    return f"Some layers of this model carry a state from token to token ({', '.join(found)})" if found else None


def _kinds(policy: Policy, tree: Tree) -> str | None:
    """A model that asks what each token is masks or numbers image tokens in its own way."""
    asked = sorted(policy.encode(tree.prefix).kinds) if tree.prefix.images else []
    return f"This model masks or numbers image tokens in its own way ({', '.join(asked)})" if asked else None


def _beside(tree: Tree, sibling: tuple[int, ...]) -> Tree:
    """The tree behind a sibling; of its chains every token is learned but the first, and nothing of the sibling."""
    nodes = [Node(sibling, ROOT, False)]
    place = {ROOT: ROOT}
    for index, node in enumerate(tree.nodes):
        head = 1 if node.parent == ROOT else 0
        if head:
            nodes.append(Node(node.ids[:1], ROOT, False))
        if len(node.ids) > head:
            parent = len(nodes) - 1 if head else place[node.parent]
            nodes.append(Node(node.ids[head:], parent, True))
        place[index] = len(nodes) - 1
    chains = []
    for learned in tree.leaves:
        chain, at = [], place[learned[-1]]
        while at != ROOT:
            chain.append(at)
            at = nodes[at].parent
        chains.append(tuple(node for node in reversed(chain) if nodes[node].learn))
    return Tree(tree.prefix, tuple(nodes), ((0,), *(chain for chain in chains if chain)))


def _values(policy: Policy, tree: Tree) -> list[Tensor]:
    """The log-probabilities of the tree's chains, token by token, without its sibling."""
    batch = {name: value.to(policy.device) for name, value in collate(policy, [tree]).items()}
    values, leaf = token_log_probabilities(policy.model, batch), batch["leaf"]
    # Unpacked, what chains share is there once for each of them.
    chains = [[values[leaf == node][: len(tree.nodes[node].ids)] for node in chain] for chain in tree.leaves[1:]]
    return [torch.cat(chain) for chain in chains]


def _apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """How far two sets of values are apart, on average."""
    return float((torch.cat(list(one)) - torch.cat(list(other))).abs().mean())


@contextmanager
def _rounded_otherwise(model: PreTrainedModel, *, seed: int) -> Iterator[None]:
    """Move what each layer of the language model gives by up to one place of its last digit, as another order of sums does."""
    unit = torch.finfo(model.dtype).eps

    def move(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        first, rest = (output[0], output[1:]) if isinstance(output, tuple) else (output, None)
        draws = torch.rand(first.shape, generator=generator).to(first.device)
        moved = (first.float() * (1 + unit * (2 * draws - 1))).to(first.dtype)
        return moved if rest is None else (moved, *rest)

    generator = torch.Generator().manual_seed(seed)
    parts: list[nn.Module] = [part for part in model.get_decoder().modules() if isinstance(part, GradientCheckpointingLayer)]
    hooks = [part.register_forward_hook(move) for part in parts or [model.get_input_embeddings()]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
