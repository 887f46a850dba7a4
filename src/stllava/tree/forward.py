"""Log-probabilities of every learned token of many trees from one forward, on any causal vision-language model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from stllava.errors import StllavaError
from stllava.model.load import Policy, Prefix, Shapes
from stllava.model.processor import belonging
from stllava.model.prompt import Segment
from stllava.tree.attention import COPYING, LEAST, MOST, NAME, by_parts
from stllava.tree.layout import ROOT, Node, cut_forwards, depth, pack, share_rows, spans

LOGITS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Tree:
    """Everything that is read or learned about one set of images."""

    prefix: Prefix
    """The images and what stands before them."""
    nodes: tuple[Node, ...]
    """What follows the prefix; ROOT as parent means the prefix."""
    leaves: tuple[tuple[int, ...], ...]
    """For each chain the tree was grown from, the indices of its learned nodes."""


def build_tree(policy: Policy, prefix: Prefix, chains: Sequence[Sequence[Segment]]) -> Tree:
    """A tree of chains of segments behind one prefix; equal beginnings that are not learned are shared."""
    nodes: list[Node] = []
    shared: dict[tuple[int, str], int] = {}
    leaves: list[tuple[int, ...]] = []
    for chain in chains:
        parent, learned = ROOT, []
        for piece in chain:
            index = shared.get((parent, piece.text)) if not piece.learn else None
            if index is None:
                index = len(nodes)
                nodes.append(Node(policy.tokens(piece.text), parent, piece.learn))
                if not piece.learn:
                    shared[parent, piece.text] = index
            if piece.learn:
                learned.append(index)
            parent = index
        leaves.append(tuple(learned))
    return Tree(prefix, tuple(nodes), tuple(leaves))


def path(tree: Tree, chain: int) -> list[int]:
    """The nodes of one of the tree's chains, from the first behind the prefix to its last learned one."""
    nodes = [tree.leaves[chain][-1]]
    while tree.nodes[nodes[-1]].parent != ROOT:
        nodes.append(tree.nodes[nodes[-1]].parent)
    return nodes[::-1]


def some_chains(tree: Tree, most: int) -> Tree:
    """The tree's first chains only."""
    nodes: list[Node] = []
    place: dict[int, int] = {ROOT: ROOT}
    for chain in range(min(most, len(tree.leaves))):
        for index in path(tree, chain):
            if index not in place:
                place[index] = len(nodes)
                node = tree.nodes[index]
                nodes.append(Node(node.ids, place[node.parent], node.learn))
    leaves = tuple(tuple(place[index] for index in learned) for learned in tree.leaves[:most])
    return Tree(tree.prefix, tuple(nodes), leaves)


def longest_chain(policy: Policy, tree: Tree) -> int:
    """Tokens of the tree's longest chain, prefix included."""
    return depth(_rooted(policy, tree.prefix, tree.nodes))


def computed_tokens(policy: Policy, tree: Tree) -> int:
    """Tokens that a forward of the tree computes: each once, or, on a model that does not pack, every chain in full."""
    return _tokens(policy, tree) if policy.packs else longest_chain(policy, tree) * len(tree.leaves)


def split_into_forwards(policy: Policy, trees: Sequence[Tree], *, most: int) -> list[list[int]]:
    """The trees, by index, cut into forwards of at most `most` tokens with little padding; what cannot be joined is apart."""
    alike: dict[Shapes, list[int]] = {}
    for index, tree in enumerate(trees):
        alike.setdefault(policy.shapes(tree.prefix), []).append(index)
    cut = []
    for together in alike.values():
        lengths = [_tokens(policy, trees[index]) if policy.packs else longest_chain(policy, trees[index]) for index in together]
        chains = None if policy.packs else [len(trees[index].leaves) for index in together]
        cut += [[together[place] for place in part] for part in cut_forwards(lengths, most=most, chains=chains)]
    return cut


def collate(policy: Policy, trees: Sequence[Tree]) -> dict[str, Tensor]:
    """One forward of all that is learned in `trees`; on a model that does not pack, every chain has its own row.

    Keys beside the image inputs: input_ids [R, N]; attention_mask, whether the row's token sees the column's
    [R, 1, N, N], with position_ids [R, N] and spans [S, 6] (tree/attention.py), or, unpacked, whether there is a token
    [R, N]; and of each of the M learned tokens rows, columns, labels, leaf [M]: where its predictor stands, its id, and
    its node counted through the trees.
    """
    first = _starts(trees)
    if policy.packs:
        shared = share_rows([_tokens(policy, tree) for tree in trees])
        rows = [
            _Row(
                tuple(trees[tree].prefix for tree in row),
                _side_by_side([_rooted(policy, trees[tree].prefix, trees[tree].nodes) for tree in row]),
                [number for tree in row for number in _numbers(trees[tree], range(len(trees[tree].nodes)), first[tree])],
            )
            for row in shared
        ]
    else:
        rows = []
        for tree, start in zip(trees, first, strict=True):
            for chain in range(len(tree.leaves)):
                order = path(tree, chain)
                nodes = [
                    Node(tree.nodes[index].ids, step - 1 if step else ROOT, tree.nodes[index].learn)
                    for step, index in enumerate(order)
                ]
                rows.append(_Row((tree.prefix,), _rooted(policy, tree.prefix, nodes), _numbers(tree, order, start)))
    layouts = [pack(row.nodes) for row in rows]
    width = max(len(layout.ids) for layout in layouts)
    ids = np.full((len(rows), width), policy.tokenizer.pad_token_id or 0, dtype=np.int64)
    positions = np.zeros((len(rows), width), dtype=np.int64)
    sees = np.zeros((len(rows), 1, width, width), dtype=bool)
    sees[:, 0, np.arange(width), np.arange(width)] = True
    there = np.zeros((len(rows), width), dtype=np.int64)
    for place, layout in enumerate(layouts):
        length = len(layout.ids)
        ids[place, :length] = layout.ids
        positions[place, :length] = layout.positions
        sees[place, 0, :length, :length] = layout.mask
        there[place, :length] = 1
    cut = [
        (place, *span.root, *span.own, span.sees_root)
        for place, row in enumerate(rows)
        for span in spans(row.nodes, least=LEAST, most=MOST)
    ]
    packed = {"attention_mask": torch.from_numpy(sees), "position_ids": torch.from_numpy(positions), "spans": torch.tensor(cut)}
    leaf = np.concatenate([np.asarray(row.numbers)[layout.leaves] for row, layout in zip(rows, layouts, strict=True)])
    return {
        **policy.join([policy.encode(prefix) for row in rows for prefix in row.prefixes if prefix.images]),
        **(packed if policy.packs else {"attention_mask": torch.from_numpy(there)}),
        **({} if policy.packs else policy.kinds([row.prefixes[0] for row in rows], left=[0] * len(rows), width=width)),
        "input_ids": torch.from_numpy(ids),
        "rows": torch.from_numpy(np.repeat(np.arange(len(rows)), [len(layout.targets) for layout in layouts])),
        "columns": torch.from_numpy(np.concatenate([layout.predictors for layout in layouts])),
        "labels": torch.from_numpy(np.concatenate([layout.targets for layout in layouts])),
        "leaf": torch.from_numpy(leaf),
    }


READ_ONLY = frozenset({"rows", "columns", "labels", "leaf", "spans"})


def token_log_probabilities(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """[M] log-probability of each learned token of a batch from `collate`, in float32."""
    inputs = {name: value for name, value in batch.items() if name not in READ_ONLY}
    plain = cast(PreTrainedModel, extract_model_from_parallel(model))
    if "spans" in batch:
        inputs["attention_mask"] = additive_mask(inputs["attention_mask"], plain)
    parts = by_parts(plain, batch.get("spans"), inputs["attention_mask"])
    with belonging(), logits_at(plain, batch["rows"], batch["columns"]), parts as told:
        logits: Tensor = model(**inputs, **told, use_cache=False).logits
    scored: Tensor = TokenLogProbability.apply(logits[0], batch["labels"])  # type: ignore[no-untyped-call]
    return scored


def additive_mask(sees: Tensor, model: PreTrainedModel) -> Tensor:
    """A mask to add to attention scores, in the precision the model computes in."""
    kind = sees.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)


@contextmanager
def logits_at(model: PreTrainedModel, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Compute logits [1, M, V] at M places of the tokens only, and of the last layer what only they need only for them.

    Keys and values of the last layer are seen by other tokens; its queries, what it makes of attention and its MLP are not.
    """
    places: Tensor | None = None
    shape: torch.Size | None = None

    def gather(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][rows, columns][None],)

    def narrow(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal places, shape
        if shape is None:
            shape = inputs[0].shape
            # Where every token is needed, as while answers grow, there is nothing to leave out.
            places = torch.unique(rows * shape[1] + columns) if len(rows) < shape[0] * shape[1] else None
        return inputs if places is None else (inputs[0].flatten(0, 1).index_select(0, places)[None],)

    def widen(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if places is None or shape is None:
            return output
        whole = output.new_zeros(shape[0] * shape[1], output.shape[-1])
        return whole.index_copy(0, places, output[0]).view(*shape[:2], -1)

    hooks = [model.get_output_embeddings().register_forward_pre_hook(gather)]
    for part in read_by_few(model):
        hooks += [part.register_forward_pre_hook(narrow), part.register_forward_hook(widen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def read_by_few(model: PreTrainedModel) -> list[nn.Module]:
    """What the last layer computes for the logits alone: its MLP, where it is a dense one, and two of its projections."""
    mlp = last_mlp(model)
    if mlp is None:
        return []
    attention = getattr(list(model.get_decoder().get_submodule("layers").children())[-1], "self_attn", None)
    projections = (getattr(attention, name, None) for name in ("q_proj", "o_proj"))
    return [mlp, *(one for one in projections if isinstance(one, nn.Module))]


def last_mlp(model: PreTrainedModel) -> nn.Module | None:
    """The MLP of the language model's last layer, where it is a dense one under the names of transformers' decoders."""
    try:
        layers = model.get_decoder().get_submodule("layers")
        mlp: nn.Module = layers.get_submodule(f"{len(list(layers.children())) - 1}.mlp")
        mlp.get_submodule("down_proj")
    except AttributeError:
        return None
    return mlp


@contextmanager
def activation_checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Keep of each layer its input only while it learns, and compute the rest again in the backward pass.

    A forward's hooks and its way to attend are gone by then. So a layer attends the second time as it did the first, and
    the layer with the narrow MLP is left alone: it would be computed again at once, when nothing is gained by it.
    """
    config, last = model.config.get_text_config(), last_mlp(model)

    @contextmanager
    def attending(kind: str) -> Iterator[None]:
        before, config._attn_implementation = config._attn_implementation, kind
        try:
            yield
        finally:
            config._attn_implementation = before

    def twice(layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        kind = COPYING if config._attn_implementation == NAME else config._attn_implementation
        contexts = attending(kind), attending(kind)
        result: Tensor = checkpoint(layer, *inputs, use_reentrant=False, context_fn=lambda: contexts)
        return result

    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    chosen: list[Any] = [one for one in layers if all(part is not last for part in one.modules())]
    if not chosen:
        raise StllavaError(
            f"{type(model).__name__} has no layers that can be computed again",
            expected="layers of transformers that know gradient checkpointing",
            remedy="Set checkpoint_activations to false.",
        )
    for one in chosen:
        one.gradient_checkpointing, one._gradient_checkpointing_func = True, twice
    try:
        yield
    finally:
        for one in chosen:
            one.gradient_checkpointing = False


class TokenLogProbability(torch.autograd.Function):
    """log softmax of logits [M, V] at labels [M], in float32 without a float32 copy of all logits at once."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, logits: Tensor, labels: Tensor) -> Tensor:
        """[M] log-probabilities."""
        totals = torch.cat([part.float().logsumexp(dim=-1) for part in logits.split(_rows_at_once(logits))])
        ctx.save_for_backward(logits, labels, totals)
        return logits.gather(-1, labels[:, None])[:, 0].float() - totals

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        """d/dlogits = (one-hot - softmax) times the incoming gradient."""
        logits, labels, totals = cast("tuple[Tensor, Tensor, Tensor]", ctx.saved_tensors)  # type: ignore[attr-defined]
        (incoming,) = gradients
        result = torch.empty_like(logits)
        for part, label, total, gradient, into in zip(
            *(value.split(_rows_at_once(logits)) for value in (logits, labels, totals, incoming, result)), strict=True
        ):
            shares = (part.float() - total[:, None]).exp_().mul_(-gradient[:, None])
            into.copy_(shares.scatter_add_(-1, label[:, None], gradient[:, None]))
        return result, None


def _rows_at_once(logits: Tensor) -> int:
    return max(1, LOGITS_AT_ONCE // logits.shape[-1])


@dataclass(frozen=True)
class _Row:
    """What one row of a batch holds."""

    prefixes: tuple[Prefix, ...]
    nodes: list[Node]
    numbers: list[int]
    """Each node's number through the batch; a prefix has none."""


def _starts(trees: Sequence[Tree]) -> list[int]:
    """The number of each tree's first node when nodes are counted through the trees."""
    return [0, *np.cumsum([len(tree.nodes) for tree in trees]).tolist()][:-1]


def _numbers(tree: Tree, nodes: Sequence[int], first: int) -> list[int]:
    return [*([-1] if tree.prefix.images else []), *(first + node for node in nodes)]


def _tokens(policy: Policy, tree: Tree) -> int:
    return policy.length(tree.prefix) + sum(len(node.ids) for node in tree.nodes)


def _side_by_side(trees: Sequence[Sequence[Node]]) -> list[Node]:
    """The nodes of several trees as one list, each tree with a root of its own."""
    nodes: list[Node] = []
    for tree in trees:
        start = len(nodes)
        nodes += [Node(node.ids, node.parent + start if node.parent != ROOT else ROOT, node.learn) for node in tree]
    return nodes


def _rooted(policy: Policy, prefix: Prefix, nodes: Sequence[Node]) -> list[Node]:
    """The nodes with the prefix as their first, where there are images."""
    if not prefix.images:
        return list(nodes)
    root = Node(policy.encode(prefix).ids, ROOT, False)
    return [root, *(Node(node.ids, node.parent + 1, node.learn) for node in nodes)]
