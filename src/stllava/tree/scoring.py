"""How likely given texts are as answers to prompts about images, from packed forwards: nothing is sampled, nothing learned."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from stllava.errors import ItemError, TextError
from stllava.model.load import Policy, Prefix
from stllava.model.prompt import Segment, open_turn, said_in
from stllava.records import Message
from stllava.tree.forward import Tree, build_tree, collate, longest_chain, split_into_forwards, token_log_probabilities
from stllava.tree.guard import check_packing
from stllava.tree.layout import cut_branches

Posed = tuple[tuple[Message, ...], tuple[str, ...]]
"""The turns of a prompt, and paths of the images that it shows."""


def answer_log_probabilities(
    policy: Policy,
    prompts: Sequence[Posed],
    answers: Sequence[Sequence[str]],
    *,
    images: Path,
    max_tokens: int,
    blank: bool = False,
) -> list[tuple[float, ...] | ItemError]:
    """The natural logarithm of the probability of each answer, its end included, behind its prompt.

    All prompts about the same images are one tree, or several of at most `max_tokens` tokens. A prompt that cannot be
    used (its image, its length) has its error in place of the numbers.

    Args:
        policy: Who would answer.
        prompts: What is asked.
        answers: The texts behind each prompt.
        images: The image root.
        max_tokens: Maximum number of tokens of a forward.
        blank: Show black in place of every image.
    """
    found: dict[int, tuple[float, ...] | ItemError] = {}
    groups: dict[Prefix, list[tuple[int, list[list[Segment]]]]] = {}
    for index, ((messages, shown), texts) in enumerate(zip(prompts, answers, strict=True)):
        try:
            prefix, chains = _chains(policy, messages, shown, texts, images=images, blank=blank)
            if (length := longest_chain(policy, build_tree(policy, prefix, chains))) > policy.context:
                raise TextError("longer than the context", f"{length} tokens do not fit into {policy.context}")
        except ItemError as error:
            found[index] = error
        else:
            groups.setdefault(prefix, []).append((index, chains))
    trees: list[Tree] = []
    places: list[list[int]] = []
    for prefix, members in groups.items():
        lengths = [sum(len(policy.tokens(piece.text)) for chain in chains for piece in chain) for _, chains in members]
        for part in cut_branches(policy.length(prefix), lengths, most=min(policy.context, max_tokens)):
            trees.append(build_tree(policy, prefix, [chain for place in part for chain in members[place][1]]))
            places.append([members[place][0] for place in part])
    if trees:
        check_packing(policy, trees)
    for scored in node_log_probabilities(policy, trees, max_tokens=max_tokens):
        for place, sums in scored.items():
            values = iter([sums[learned[-1]] for learned in trees[place].leaves])
            for index in places[place]:
                found[index] = tuple(next(values) for _ in answers[index])
    return [found[index] for index in range(len(prompts))]


def _chains(
    policy: Policy, messages: Sequence[Message], shown: tuple[str, ...], answers: Sequence[str], *, images: Path, blank: bool
) -> tuple[Prefix, list[list[Segment]]]:
    """What stands before and with the images, and behind them a chain for each answer."""
    turn = open_turn(policy.chat, messages, images=len(shown), speaker="assistant")
    before = [Segment(piece.text, False) for piece in turn.before]
    prefix = Prefix(before[0].text if shown else "", shown, images, blank=blank)
    return prefix, [[*before[1 if shown else 0 :], said_in(policy.chat, turn, answer)] for answer in answers]


def node_log_probabilities(policy: Policy, trees: Sequence[Tree], *, max_tokens: int) -> Iterator[dict[int, list[float]]]:
    """Of each tree, by its place, the summed log-probability of every learned node, and 0 for the others; a forward at a time.

    Args:
        policy: The policy as it is; nothing is learned.
        trees: What is scored.
        max_tokens: Maximum number of tokens of a forward.
    """
    policy.model.eval()
    for part in split_into_forwards(policy, trees, most=max_tokens) if trees else []:
        batch = {name: value.to(policy.device) for name, value in collate(policy, [trees[place] for place in part]).items()}
        nodes = [len(trees[place].nodes) for place in part]
        with torch.inference_mode():
            values = token_log_probabilities(policy.model, batch)
            sums = iter(values.new_zeros(sum(nodes)).index_add(0, batch["leaf"], values).tolist())
        yield {place: [next(sums) for _ in range(count)] for place, count in zip(part, nodes, strict=True)}
