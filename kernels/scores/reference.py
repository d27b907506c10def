"""The readable oracle of the token scores: plain torch, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.reference import positive_delta


def token_scores(
    delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    """sqrt(sum_d weight_d delta_d^2); see longscan.kernels.token_scores."""
    delta = delta.to(torch.promote_types(delta.dtype, torch.float32))
    delta = positive_delta(delta, delta_bias, delta_softplus)
    square = delta.square() if weight is None else delta.square() * weight.to(delta.dtype)
    score = square.sum(-1).sqrt().float()
    return score if mask is None else torch.where(mask, score, 0.0)
