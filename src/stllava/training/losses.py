"""Losses as pure functions of log-probabilities.

`chosen`, `rejected`, `ref_chosen`, `ref_rejected`: [P] summed log-probabilities of P pairs' answers under the policy and
under the reference. Every function gives TRL 1.16's values (`trl/trainer/dpo_trainer.py`, `DPOTrainer._compute_loss`):

| here | TRL's `loss_type` |
|---|---|
| sigmoid | sigmoid |
| sigmoid with lengths | sigmoid_norm |
| ipo with lengths | ipo |
| hinge | hinge |
| `nll` of the chosen answers | sft |

`group_loss` is none of TRL's: it is GRPO's objective written over pairs (`pair.pairs: group`).

TRL has no name for ipo on sums, hinge with lengths, or label smoothing of sigmoid and hinge: it leaves its own
`label_smoothing` unread in these, and its robust loss is another one (Chowdhury et al. 2024).
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from stllava.errors import StllavaError

Loss = Literal["sigmoid", "ipo", "hinge"]
_HIGHEST = 20.0
"""Nats above the reference from which on a rejected answer's ratio is not told apart."""


def preference_loss(
    kind: Loss,
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    lengths: Sequence[Tensor] | None = None,
) -> Tensor:
    """[P] The loss of each pair, of h = `preference_gap(…)`.

    sigmoid: -log σ(βh), DPO (Rafailov et al. 2023, eq. 7); hinge: max(0, 1 - βh), SLiC-HF's (Zhao et al. 2023) with DPO's
    h; ipo: (h - 1/(2β))² (Azar et al. 2023, eq. 17, β being their τ).

    `lengths` means the same for every kind: h is of averages over tokens. As printed, eq. 17 has sums; its authors told
    TRL's that their results are of averages, so TRL's ipo has averages only. Give ipo its lengths to get that one: 1/(2β)
    then is a distance in nats a token, without lengths in nats an answer, so the two want different β.

    `label_smoothing` is the probability e that a label is wrong: (1 - e)·loss(h) + e·loss(-h), cDPO's (Mitchell 2023).
    """
    gap = preference_gap(chosen, rejected, ref_chosen, ref_rejected, lengths=lengths)
    if kind == "ipo":
        if label_smoothing:
            raise StllavaError(
                f"the loss ipo with a label smoothing of {label_smoothing}",
                expected="label smoothing with the losses sigmoid and hinge only",
                remedy="Set it to 0 and raise beta: for ipo, smoothing by e is the same as dividing beta by 1 - 2e.",
            )
        return (gap - 1 / (2 * beta)).square()
    one_sided = _sigmoid if kind == "sigmoid" else _hinge
    if not label_smoothing:
        return one_sided(beta * gap)
    return (1 - label_smoothing) * one_sided(beta * gap) + label_smoothing * one_sided(-beta * gap)


def preference_gap(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    lengths: Sequence[Tensor] | None = None,
) -> Tensor:
    """[P] h, in nats: how much more the policy moved from the reference towards the chosen than towards the rejected answer.

    With `lengths`, the [P] numbers of tokens of chosen and rejected, both moves are averages over the answer's tokens.
    β·h without lengths is the margin of DPO's implicit rewards.
    """
    towards, away = chosen - ref_chosen, rejected - ref_rejected
    if lengths is not None:
        towards, away = (move / tokens.clamp(min=1) for move, tokens in zip((towards, away), lengths, strict=True))
    return towards - away


def group_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, clip: float) -> Tensor:
    """[P] The clipped policy-gradient loss of each pair: max(r_rejected, 1 - clip) - min(r_chosen, 1 + clip), r = p / p_ref.

    Summed over all pairs of a question's K answers with the weights (s_i - s_j) / (K σ), equal texts counted as often as they
    were given, its gradient at the reference is that of GRPO's group-relative advantages (Shao et al. 2024, arXiv
    2402.03300): Σ_i A_i ∇log p_i with A_i = (s_i - mean) / σ, for Σ_i A_i x_i = Σ_{i<j} (s_i - s_j)(x_i - x_j) / (K σ). Other
    than there, a ratio is that of a whole answer and not of a token, answers were sampled once and not anew in every step,
    and the pull to the reference is the clip alone, without a KL term.
    """
    # Clipped before the exponential: what overflows there has no gradient but NaN.
    grow = (chosen - ref_chosen).clamp(max=math.log1p(clip)).exp()
    shrink = (rejected - ref_rejected).clamp(min=math.log1p(-clip), max=_HIGHEST).exp()
    return shrink - grow


def nll(log_probabilities: Tensor, *, tokens: float) -> Tensor:
    """[] Negative log-likelihood per token: minus the sum over the step's log-probabilities, by the step's `tokens`.

    The sum may be of tokens or of whole answers; `tokens` is given because a step may take several forwards.
    """
    return -log_probabilities.sum() / tokens


def _sigmoid(logits: Tensor) -> Tensor:
    return -logsigmoid(logits)


def _hinge(logits: Tensor) -> Tensor:
    return (1 - logits).relu()
