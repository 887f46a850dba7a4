"""Losses as pure functions of log-probabilities."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_sigmoid(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float) -> Tensor:
    """[P] DPO's loss of each pair (Rafailov et al. 2023, eq. 7) from summed log-probabilities of the answers."""
    return -logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))
