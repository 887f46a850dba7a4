"""The losses of preference pairs: closed forms, symmetries, and TRL's formulas."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid

from stllava.errors import StllavaError
from stllava.experts.answer_pairs import group_weights
from stllava.training.losses import Loss, group_loss, nll, preference_gap, preference_loss

KINDS: tuple[Loss, ...] = ("sigmoid", "ipo", "hinge")
SMOOTHED: tuple[Literal["sigmoid", "hinge"], ...] = ("sigmoid", "hinge")
BETAS = st.floats(0.01, 2.0)
SMOOTHINGS = st.floats(0.0, 0.5)
LOG_PROBABILITY = st.floats(-60.0, 0.0)
PAIRS = st.lists(st.tuples(*[LOG_PROBABILITY] * 4), min_size=1, max_size=5)
"""Chosen, rejected, and the two under the reference, of each pair."""
TOKENS = st.tuples(st.integers(1, 50), st.integers(1, 50))

Four = tuple[float, float, float, float]


def columns(pairs: list[Four]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen, rejected, ref_chosen, ref_rejected = torch.tensor(pairs, dtype=torch.float64).unbind(-1)
    return chosen, rejected, ref_chosen, ref_rejected


def swapped(pairs: list[Four]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    chosen, rejected, ref_chosen, ref_rejected = columns(pairs)
    return rejected, chosen, ref_rejected, ref_chosen


def one(gap: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A pair with this gap."""
    return columns([(gap - 3.0, -5.0, -3.0, -5.0)])


@pytest.mark.parametrize(
    ("kind", "gap", "beta", "smoothing", "expected"),
    [
        ("sigmoid", 0.0, 0.1, 0.0, math.log(2)),
        ("sigmoid", 3.0, 0.5, 0.0, math.log(1 + math.exp(-1.5))),
        ("sigmoid", -2.0, 1.0, 0.25, 0.75 * math.log(1 + math.exp(2)) + 0.25 * math.log(1 + math.exp(-2))),
        ("sigmoid", -2000.0, 1.0, 0.0, 2000.0),
        ("hinge", 3.0, 0.25, 0.0, 0.25),
        ("hinge", 30.0, 0.25, 0.0, 0.0),
        ("hinge", -4.0, 0.5, 0.0, 3.0),
        ("hinge", 4.0, 0.5, 0.25, 0.75 * 0.0 + 0.25 * 3.0),
        ("ipo", 0.0, 0.1, 0.0, 25.0),
        ("ipo", 5.0, 0.1, 0.0, 0.0),
        ("ipo", -1.0, 0.25, 0.0, 9.0),
    ],
)
def test_each_loss_has_its_closed_form(kind: Loss, gap: float, beta: float, smoothing: float, expected: float) -> None:
    made = preference_loss(kind, *one(gap), beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(made, torch.tensor([expected], dtype=torch.float64))


@given(PAIRS, BETAS, st.none() | TOKENS)
def test_swapping_chosen_and_rejected_mirrors_each_loss(pairs: list[Four], beta: float, tokens: tuple[int, int] | None) -> None:
    lengths = None if tokens is None else tensors(tokens)
    flipped = None if lengths is None else (lengths[1], lengths[0])
    gap = preference_gap(*columns(pairs), lengths=lengths)
    torch.testing.assert_close(gap, -preference_gap(*swapped(pairs), lengths=flipped))
    losses = {kind: preference_loss(kind, *columns(pairs), beta=beta, lengths=lengths) for kind in KINDS}
    mirrors = {kind: preference_loss(kind, *swapped(pairs), beta=beta, lengths=flipped) for kind in KINDS}
    torch.testing.assert_close(torch.exp(-losses["sigmoid"]) + torch.exp(-mirrors["sigmoid"]), torch.ones_like(gap))
    torch.testing.assert_close(losses["ipo"] - mirrors["ipo"], -2 * gap / beta)
    torch.testing.assert_close(losses["hinge"] - mirrors["hinge"], -(beta * gap) - (beta * gap).clamp(-1, 1))


@given(LOG_PROBABILITY, LOG_PROBABILITY, BETAS, SMOOTHINGS)
def test_at_the_reference_the_losses_are_known(chosen: float, rejected: float, beta: float, smoothing: float) -> None:
    start = columns([(chosen, rejected, chosen, rejected)])
    assert float(preference_loss("sigmoid", *start, beta=beta, label_smoothing=smoothing)) == pytest.approx(math.log(2))
    assert float(preference_loss("hinge", *start, beta=beta, label_smoothing=smoothing)) == pytest.approx(1)
    assert float(preference_loss("ipo", *start, beta=beta)) == pytest.approx(1 / (4 * beta**2))


@pytest.mark.parametrize("kind", KINDS)
@given(pairs=PAIRS, beta=BETAS)
def test_learning_raises_chosen_and_lowers_rejected_as_long_as_the_loss_asks_for_more(
    kind: Loss, pairs: list[Four], beta: float
) -> None:
    chosen, rejected, ref_chosen, ref_rejected = columns(pairs)
    chosen.requires_grad_()
    rejected.requires_grad_()
    gap = preference_gap(chosen, rejected, ref_chosen, ref_rejected).detach()
    preference_loss(kind, chosen, rejected, ref_chosen, ref_rejected, beta=beta).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    torch.testing.assert_close(chosen.grad, -rejected.grad)
    goal = {"sigmoid": math.inf, "hinge": 1 / beta, "ipo": 1 / (2 * beta)}[kind]
    wanting, there = gap < goal - 1e-9, gap > goal + 1e-9
    assert bool((chosen.grad[wanting] < 0).all())
    assert bool((chosen.grad[there] == 0).all() if kind == "hinge" else (chosen.grad[there] > 0).all())


@pytest.mark.parametrize("kind", SMOOTHED)
@given(pairs=PAIRS, beta=BETAS, smoothing=SMOOTHINGS)
def test_label_smoothing_is_the_expected_loss_over_wrong_labels(
    kind: Loss, pairs: list[Four], beta: float, smoothing: float
) -> None:
    made = preference_loss(kind, *columns(pairs), beta=beta, label_smoothing=smoothing)
    right, wrong = preference_loss(kind, *columns(pairs), beta=beta), preference_loss(kind, *swapped(pairs), beta=beta)
    torch.testing.assert_close(made, (1 - smoothing) * right + smoothing * wrong)


@pytest.mark.parametrize("kind", SMOOTHED)
@given(pairs=PAIRS, beta=BETAS)
def test_with_labels_that_are_coin_flips_the_loss_is_symmetric(kind: Loss, pairs: list[Four], beta: float) -> None:
    losses = [preference_loss(kind, *side(pairs), beta=beta, label_smoothing=0.5) for side in (columns, swapped)]
    torch.testing.assert_close(*losses)


def test_the_smoothed_sigmoid_loss_stops_where_it_believes_its_labels() -> None:
    gap = torch.tensor([math.log(0.9 / 0.1) / 0.5], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    preference_loss("sigmoid", gap, zero, zero, zero, beta=0.5, label_smoothing=0.1).backward()
    assert gap.grad is not None
    assert float(gap.grad) == pytest.approx(0, abs=1e-12)


def test_label_smoothing_of_ipo_is_refused() -> None:
    with pytest.raises(StllavaError, match=r"dividing beta by 1 - 2e"):
        preference_loss("ipo", *one(1.0), beta=0.1, label_smoothing=0.1)


@given(pairs=PAIRS, beta=BETAS, smoothing=st.floats(0.01, 0.4))
def test_what_the_refusal_says_of_ipo_is_so(pairs: list[Four], beta: float, smoothing: float) -> None:
    right, wrong = preference_loss("ipo", *columns(pairs), beta=beta), preference_loss("ipo", *swapped(pairs), beta=beta)
    smoothed = (1 - smoothing) * right + smoothing * wrong
    moved = preference_loss("ipo", *columns(pairs), beta=beta / (1 - 2 * smoothing))
    constant = smoothing * (1 - smoothing) / beta**2
    torch.testing.assert_close(smoothed, moved + constant)


@pytest.mark.parametrize("kind", KINDS)
@given(pairs=PAIRS, beta=BETAS, tokens=st.integers(1, 50))
def test_averages_over_equal_lengths_divide_beta_by_the_length(kind: Loss, pairs: list[Four], beta: float, tokens: int) -> None:
    averaged = preference_loss(kind, *columns(pairs), beta=beta, lengths=tensors((tokens, tokens)))
    summed = preference_loss(kind, *columns(pairs), beta=beta / tokens)
    torch.testing.assert_close(averaged, summed / tokens**2 if kind == "ipo" else summed)


@given(pairs=PAIRS, beta=BETAS, tokens=TOKENS)
def test_the_losses_are_those_of_trl(pairs: list[Four], beta: float, tokens: tuple[int, int]) -> None:
    counts = tensors(tokens)
    assert_same = torch.testing.assert_close
    assert_same(preference_loss("sigmoid", *columns(pairs), beta=beta), trl("sigmoid", pairs, beta, tokens))
    assert_same(
        preference_loss("sigmoid", *columns(pairs), beta=beta, lengths=counts), trl("sigmoid_norm", pairs, beta, tokens)
    )
    assert_same(preference_loss("hinge", *columns(pairs), beta=beta), trl("hinge", pairs, beta, tokens))
    assert_same(preference_loss("ipo", *columns(pairs), beta=beta, lengths=counts), trl("ipo", pairs, beta, tokens))


def trl(loss_type: str, pairs: list[Four], beta: float, tokens: tuple[int, int]) -> Tensor:
    """What `DPOTrainer._compute_loss` of TRL 1.16 computes with its default reverse KL, line by line."""
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps = columns(pairs)
    chosen_scores = chosen_logps - ref_chosen_logps
    rejected_scores = rejected_logps - ref_rejected_logps
    delta_score = chosen_scores - rejected_scores
    chosen_mask, rejected_mask = (torch.ones(len(pairs), count) for count in tokens)
    chosen_avg_score = chosen_scores / chosen_mask.sum(dim=1).clamp(min=1.0)
    rejected_avg_score = rejected_scores / rejected_mask.sum(dim=1).clamp(min=1.0)
    delta = chosen_avg_score - rejected_avg_score
    return {
        "sigmoid": -logsigmoid(beta * delta_score),
        "sigmoid_norm": -logsigmoid(beta * delta),
        "hinge": torch.relu(1 - beta * delta_score),
        "ipo": (delta - 1 / (2 * beta)) ** 2,
    }[loss_type]


def test_an_answer_without_tokens_has_moved_by_nothing() -> None:
    chosen, rejected, ref_chosen, ref_rejected = columns([(0.0, -4.0, 0.0, -2.0)])
    gap = preference_gap(chosen, rejected, ref_chosen, ref_rejected, lengths=tensors((0, 2)))
    assert gap.tolist() == [1.0]


@given(st.lists(LOG_PROBABILITY, min_size=2, max_size=12), st.integers(1, 11))
def test_the_likelihood_per_token_is_the_same_in_one_forward_and_in_several(values: list[float], cut: int) -> None:
    tokens = torch.tensor(values, dtype=torch.float64)
    whole = nll(tokens, tokens=len(values))
    torch.testing.assert_close(whole, -tokens.mean())
    torch.testing.assert_close(nll(tokens[:cut], tokens=len(values)) + nll(tokens[cut:], tokens=len(values)), whole)


def tensors(tokens: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The numbers of tokens of chosen and rejected, the same for every pair."""
    chosen, rejected = tokens
    return torch.tensor([chosen]), torch.tensor([rejected])


def test_the_group_loss_gains_nothing_beyond_its_clip() -> None:
    def loss(chosen: float, rejected: float) -> float:
        return float(group_loss(*columns([(chosen, rejected, -3.0, -3.0)]), clip=0.2))

    assert loss(-3.0, -3.0) == pytest.approx(0)
    assert loss(-3.0 + math.log(1.1), -3.0) == pytest.approx(1 - 1.1)
    assert loss(-1.0, -3.0) == pytest.approx(1 - 1.2)
    assert loss(-3.0, -9.0) == pytest.approx(0.8 - 1)
    assert loss(-6.0, -1.0) == pytest.approx(math.exp(2) - math.exp(-3))


@given(given_scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=6), times=st.lists(st.integers(1, 4)))
def test_over_all_pairs_its_gradient_is_that_of_advantages_within_the_group(
    given_scores: list[float], times: list[int]
) -> None:
    marks = dict(enumerate(given_scores))
    texts = [f"answer {index}" for index in marks for _ in range((times + [1] * len(marks))[index])]
    scores = [marks[int(text.split()[1])] for text in texts]
    if len(set(scores)) < 2:
        return
    weights = group_weights(texts, scores)
    distinct = list(dict.fromkeys(texts))
    reference = torch.linspace(-9, -1, len(distinct), dtype=torch.float64)
    values = reference.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for (one, other), weight in weights.items():
        better, worse = distinct.index(one), distinct.index(other)
        four = (values[[better]], values[[worse]], reference[[better]], reference[[worse]])
        total = total + weight * group_loss(*four, clip=0.2).sum()
    total.backward()
    mean = sum(scores) / len(scores)
    spread = (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5
    advantages = [texts.count(text) * (scores[texts.index(text)] - mean) / spread for text in distinct]
    assert values.grad is not None
    # The clip's edge is not reached, so every ratio has its gradient, which is 1 at the reference.
    assert values.grad.tolist() == pytest.approx([-advantage for advantage in advantages], abs=1e-9)
