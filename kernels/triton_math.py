"""Scalar functions of the Triton kernels, float32 in and out."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = 1.4426950408889634


@triton.jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|).

    log1p(u) = u log(w) / (w - 1) with w = 1 + u as rounded: exact where log(1 + u) alone would lose small u.
    """
    u = tl.exp(-tl.abs(x))
    w = 1.0 + u
    small = w == 1.0
    log1p = tl.where(small, u, u * tl.log(w) / tl.where(small, 1.0, w - 1.0))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def silu(x):
    """x / (1 + e^-x)."""
    return x / (1.0 + tl.exp(-x))
