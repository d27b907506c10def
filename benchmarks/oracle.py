"""The recurrence in float64 with numba, one channel after the other: an oracle fast enough for a million tokens."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor


@numba.njit(cache=False, error_model="numpy")
def _scan(x, delta, A, B, C, D, z, bias, threshold, y):
    L, channels = x.shape
    for d in range(channels):
        h = np.zeros(A.shape[1])
        for t in range(L):
            raw = delta[t, d] + bias[d]
            kept = max(raw, 0.0) + np.log1p(np.exp(-abs(raw)))
            if not kept > threshold[d]:
                kept = 0.0
            out = D[d] * x[t, d]
            for n in range(A.shape[1]):
                h[n] = np.exp(kept * A[d, n]) * h[n] + kept * x[t, d] * B[t, n]
                out += h[n] * C[t, n]
            y[t, d] = out * z[t, d] / (1.0 + np.exp(-z[t, d]))


def scan_oracle(x, delta, A, B, C, D, z, delta_bias, threshold=None) -> Tensor:
    """Arguments of selective_scan with one row, x (1, L, D) -> y (1, L, D) float64 on the CPU."""
    threshold = torch.full((x.shape[2],), -1.0) if threshold is None else threshold
    rows = (x[0], delta[0], A, B[0], C[0], D, z[0], delta_bias, threshold)
    y = np.empty(tuple(x.shape[1:]))
    _scan(*(t.double().cpu().contiguous().numpy() for t in rows), y)
    return torch.from_numpy(y)[None]
