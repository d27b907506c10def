"""The readable oracle of the norm: plain torch, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """weight x / sqrt(mean(x^2) + epsilon), in float32 at least; see longscan.kernels.rms_norm."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight.to(x.dtype)).to(dtype)
