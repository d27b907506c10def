"""The float32 token scores for CPUs: one read of delta."""

from __future__ import annotations

import numpy as np
from numba import prange

from ..shared.cpu_compile import compiled
from ..shared.cpu_math import softplus

_SCORES = "void(f4[:,:,::1], f4[::1], b1, b1[:,:], f4[::1], f4[:,::1])"


@compiled(_SCORES, parallel=True)
def scores(delta, bias, use_softplus, mask, weight, out):
    """out (B, L) = sqrt(sum_d weight_d delta_d^2)."""
    rows, L, channels = delta.shape
    for job in prange(rows * L):
        b, t = job // L, job % L
        total = np.float32(0.0)
        if mask.shape[1] == 0 or mask[b, t]:
            for d in range(channels):
                v = delta[b, t, d] + bias[d]
                if use_softplus:
                    v = softplus(v)
                total += weight[d] * v * v
        out[b, t] = np.sqrt(total)
