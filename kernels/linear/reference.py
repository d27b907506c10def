"""The matrix product as torch computes it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See longscan.kernels.linear."""
    return F.linear(x, weight, bias)
