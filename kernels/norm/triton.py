"""The launch of RMSNorm's Triton kernel."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..shared.triton_launch import FUSED, dense, dense_rows
from .triton_kernel import rms

NORM_CONFIG = {"num_warps": 4}


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """See longscan.kernels.rms_norm."""
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if y.numel():
        M = x.shape[-1]
        rows = dense_rows(x.reshape(-1, M))
        rms[(rows.shape[0],)](
            rows, dense(weight), y, rows.stride(0), M, epsilon, BLOCK=triton.next_power_of_2(M), **NORM_CONFIG, **FUSED
        )
    return y
