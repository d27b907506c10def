"""The float32 convolution for CPUs: pieces of 64 tokens, channels side by side as vectors."""

from __future__ import annotations

import numpy as np
from numba import prange

from ..shared.cpu_compile import compiled
from ..shared.cpu_math import silu

_CONV = "void(f4[:,:,:], f4[:,::1], f4[::1], f4[:,:,::1], b1[:,:], f4[:,:,::1])"
_STEP = "void(f4[:,:,:], f4[:,:], f4[:,:], f4[::1], f4[:,::1])"


@compiled(_CONV, parallel=True)
def conv(x, taps, bias, before, mask, y):
    """silu of the causal depthwise convolution. x, y (B, L, D); taps (W, D); before (B, W-1, D), the last inputs."""
    rows, L, channels = x.shape
    W = taps.shape[0]
    masked = mask.shape[1] > 0
    piece = 64
    pieces = (L + piece - 1) // piece
    for job in prange(rows * pieces):
        b, first = job // pieces, (job % pieces) * piece
        acc = np.empty(channels, np.float32)
        for t in range(first, min(L, first + piece)):
            for d in range(channels):
                acc[d] = bias[d]
            for k in range(W):
                s = t - (W - 1) + k
                if s < 0:
                    for d in range(channels):
                        acc[d] += taps[k, d] * before[b, W - 1 + s, d]
                elif not masked or mask[b, s]:
                    for d in range(channels):
                        acc[d] += taps[k, d] * x[b, s, d]
                else:
                    for d in range(channels):
                        acc[d] += taps[k, d] * np.float32(0.0)  # NaN if the weight is
            for d in range(channels):
                y[b, t, d] = silu(acc[d])


@compiled(_STEP)
def step(state, x, weight, bias, y):
    """One token: state (B, D, W-1), the last inputs, in place; x, y (B, D); weight (D, W); a bias of size 0 is none."""
    rows, channels, past = state.shape
    for b in range(rows):
        for d in range(channels):
            total = weight[d, past] * x[b, d]
            for k in range(past):
                total += weight[d, k] * state[b, d, k]
            for k in range(past - 1):
                state[b, d, k] = state[b, d, k + 1]
            if past:
                state[b, d, past - 1] = x[b, d]
            y[b, d] = total + bias[d] if bias.size else total
        for d in range(channels):
            y[b, d] = silu(y[b, d])
