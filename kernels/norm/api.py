"""RMSNorm: arguments checked once, then handed to a backend.

M features
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import public
from ..shared.arguments import floats, shape
from ..shared.dispatch import module
from . import reference


@public
def rms_norm(
    x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype | None = None, *, backend: str = "auto"
) -> Tensor:
    """y = weight x / sqrt(mean(x^2) + epsilon), computed in float32 (float64 where x is).

    x: (..., M), any strides; weight: (M,); dtype: of y, None = that of x

    Returns y (..., M). Raises ValueError as selective_scan.
    """
    given = floats(x=x, weight=weight)
    if not x.dim():
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (..., {weight.shape[0]})")
    shape("weight", weight, (x.shape[-1],))
    fused = torch.compiler.is_compiling()  # whose compiler fuses torch's operations itself
    run = reference if fused else module("norm", backend, given)
    return run.rms_norm(x, weight, epsilon, x.dtype if dtype is None else dtype)
