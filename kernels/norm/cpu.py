"""The norm on the CPU: tensors in, a numba loop, a tensor out. float32, whatever the inputs' dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.cpu_arrays import one_at_a_time, packed
from . import cpu_loops
from .reference import gated_rms_norm, inner_rms_norm

# The gated norm and the inner ones are torch's: there is no loop for them.
__all__ = ["add_rms_norm", "gated_rms_norm", "inner_rms_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """See longscan.kernels.rms_norm."""
    y = torch.empty(x.shape, dtype=torch.float32)
    if y.numel():
        width = x.shape[-1]
        with one_at_a_time:
            cpu_loops.rms(packed(x.reshape(-1, width)), packed(weight), epsilon, y.view(-1, width).numpy())
    return y.to(dtype)


def add_rms_norm(
    residual: Tensor, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.add_rms_norm."""
    total = residual + x
    return rms_norm(total, weight, epsilon, dtype), total
