"""The reference of dpo: the starting policy's log-probabilities of every answer, found once before training.

Where the policy gave the answers itself, `answer` noted their log-probabilities as it spoke. These are used once a sample
of them has been checked against a packed forward; everything else is computed, each tree once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from stllava.model.load import Policy
from stllava.progress import Progress
from stllava.records import Preference, Reference
from stllava.text import counted
from stllava.training.preference_dataset import AlteredTree, OnDemand, PreferenceDataset
from stllava.training.processes import current_processes
from stllava.training.step_sharing import share_evenly
from stllava.tree.forward import Tree, computed_tokens, some_chains
from stllava.tree.scoring import node_log_probabilities

LogProbabilities = tuple[float, float]
"""Summed log-probabilities, in nats, of a chosen and a rejected answer."""
CHECKED_SHARE, MOST_CHECKED, CHECKED_ANSWERS = 8, 8, 2
"""One tree in eight, eight at most, two answers of each, are checked before noted log-probabilities are used."""
CLOSE = {torch.float32: 1e-3}
CLOSE_IN_HALF = 3e-2
"""Nats a token by which an unmoved policy may differ from its reference, by precision."""


@dataclass(frozen=True)
class References:
    """What the starting policy gives to the answers of every pair."""

    weights: str
    """The fingerprint of that policy."""
    values: tuple[tuple[LogProbabilities, ...], ...]
    """By tree, then by pair."""
    contrasts: tuple[tuple[LogProbabilities, ...], ...]
    """By tree, then by chosen answer: with its image and with a black one; nothing where that is not learned from."""
    note: str
    """How they were found, in a sentence."""

    def records(self, dataset: PreferenceDataset) -> Iterator[Reference]:
        """The reference of every pair of the data set it was measured on."""
        return (
            Reference(id=preference.id, policy=self.weights, chosen=chosen, rejected=rejected)
            for preferences, values in zip(dataset.preferences, self.values, strict=True)
            for preference, (chosen, rejected) in zip(preferences, values, strict=True)
        )


def close_of(policy: Policy) -> float:
    """By how many nats a token an unmoved policy may differ from its reference."""
    return CLOSE.get(policy.model.dtype, CLOSE_IN_HALF)


def measure_reference(dataset: PreferenceDataset, policy: Policy, *, weights: str) -> References:
    """The log-probabilities of every answer under `policy`, whose fingerprint is `weights`, as noted or computed here."""
    noted = [_noted(preferences, weights) for preferences in dataset.preferences]
    known = [index for index, values in enumerate(noted) if values is not None]
    step = max(CHECKED_SHARE, len(known) // MOST_CHECKED)
    gaps = [_gap(dataset, policy, index, noted[index] or ()) for index in known[::step][:MOST_CHECKED]]
    gap, close = current_processes().share(max(gaps, default=0.0)), close_of(policy)
    used = {index: values for index, values in enumerate(noted) if values is not None} if gap <= close else {}
    rest = [index for index in range(len(dataset)) if index not in used]
    measured = dict(zip(rest, _compute(dataset, policy, rest), strict=True))
    values = tuple(used[index] if index in used else measured[index] for index in range(len(dataset)))
    if not known:
        note = f"The reference's log-probabilities were computed for {counted(len(dataset), 'tree')} before training."
    elif not used:
        note = (
            f"The reference's log-probabilities were computed again: those noted by answer differ by {gap:.2g} per token, "
            f"more than {close:.2g}."
        )
    else:
        note = (
            f"The reference's log-probabilities of {len(used)} of {counted(len(dataset), 'tree')} are those that answer noted "
            f"(a sample is {gap:.1e} per token off at most); the others were computed before training."
        )
    return References(weights, values, _contrasts(dataset, policy, values), note)


def _noted(preferences: Sequence[Preference], weights: str) -> tuple[LogProbabilities, ...] | None:
    """What the policy with these weights noted of every pair of a tree, or None where something is missing."""
    references = [preference.reference for preference in preferences]
    if any(reference is None or reference.policy != weights for reference in references):
        return None
    return tuple((reference.chosen, reference.rejected) for reference in references if reference is not None)


def _gap(dataset: PreferenceDataset, policy: Policy, index: int, noted: Sequence[LogProbabilities]) -> float:
    """Largest difference per token between what was noted of a tree's first answers and a packed forward."""
    tree = dataset.trees[index]
    known = {
        node: value
        for nodes, pair in zip(dataset.pairs[index], noted, strict=True)
        for node, value in zip(nodes, pair, strict=True)
    }
    few = some_chains(tree, CHECKED_ANSWERS)
    ((values,),) = (scored.values() for scored in node_log_probabilities(policy, [few], max_tokens=dataset.max_tokens))
    ends = zip(tree.leaves, few.leaves, strict=False)
    return max(abs(values[there[-1]] - known[here[-1]]) / len(tree.nodes[here[-1]].ids) for here, there in ends)


def _contrasts(
    dataset: PreferenceDataset, policy: Policy, values: Sequence[Sequence[LogProbabilities]]
) -> tuple[tuple[LogProbabilities, ...], ...]:
    """What the policy gives each chosen answer with its image, which is known, and with a black one, computed here."""
    found: list[tuple[LogProbabilities, ...]] = [()] * len(dataset)
    black = [index for index, altered in enumerate(dataset.altered) if altered is not None] if dataset.image_conditional else []
    trees = OnDemand(len(black), lambda place: _altered(dataset, black[place]).tree)
    for place, sums in _node_sums(policy, trees, max_tokens=dataset.max_tokens).items():
        index = black[place]
        known = {pair[0]: value[0] for pair, value in zip(dataset.pairs[index], values[index], strict=True)}
        found[index] = tuple((known[node], sums[other]) for node, other in _altered(dataset, index).contrasts)
    return tuple(found)


def _altered(dataset: PreferenceDataset, index: int) -> AlteredTree:
    """The black tree beside a tree that has one."""
    altered = dataset.altered[index]
    if altered is None:
        raise ValueError(f"tree {index} has no black one beside it")
    return altered


def _compute(dataset: PreferenceDataset, policy: Policy, indices: Sequence[int]) -> list[tuple[LogProbabilities, ...]]:
    """Log-probabilities of the pairs of some trees under the policy as it is."""
    if not indices:
        return []
    trees = OnDemand(len(indices), lambda place: dataset.trees[indices[place]])
    found = _node_sums(policy, trees, max_tokens=dataset.max_tokens)
    return [
        tuple((found[place][chosen], found[place][rejected]) for chosen, rejected in dataset.pairs[index])
        for place, index in enumerate(indices)
    ]


def _node_sums(policy: Policy, trees: Sequence[Tree], *, max_tokens: int) -> dict[int, list[float]]:
    """The log-probability of every node of every tree, by its index, each process computing its share of them."""
    if not trees:
        return {}
    processes = current_processes()
    work = [computed_tokens(policy, tree) for tree in trees]
    own = share_evenly(work, groups=processes.count)[processes.index]
    found: list[tuple[int, list[float]]] = []
    with Progress("dpo reference", len(own), unit="images") as progress:
        mine = OnDemand(len(own), lambda place: trees[own[place]])
        for scored in node_log_probabilities(policy, mine, max_tokens=max_tokens):
            found += [(own[place], sums) for place, sums in scored.items()]
            progress.advance(len(scored))
    return dict(processes.gather(found))
