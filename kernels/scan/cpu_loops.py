"""The float32 selective scan for CPUs: sixteen channels a vector, states in registers or the first-level cache.

Channels are lanes because nothing crosses them: no horizontal sums in the loop. Memory beyond inputs and output is
one (N, 16) tile a thread; delta', the sum over states and the gate never leave it.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from ..shared.cpu_compile import compiled
from ..shared.cpu_math import LOG2E, exp2_negative, silu, softplus
from .cpu_vector import LANES, token

_SCAN = (
    "void(f4[:,:,:], f4[:,:,:], f4[:,::1], f4[:,:,:], f4[:,:,:], f4[::1], f4[:,:,:], f4[::1], b1, f4[:,:], f4[:,:], "
    "i8[:,:], b1[:,:], f4[:,:,::1], f4[:,:,::1])"
)
_STEP = (
    "void(f4[:,:,::1], f4[:,:], f4[:,:], f4[:,::1], f4[:,:], f4[:,:], f4[::1], f4[:,:], f4[::1], b1, f4[:,:], f4[:,:], "
    "f4[:,::1])"
)


@compiled(_SCAN, parallel=True)
def scan(x, delta, A, B, C, D, z, bias, use_softplus, threshold, scale, index, mask, y, state):
    """All float32 but index (B, K) int64 and mask (B, L) bool; absent options are arrays of size 0.

    D is a multiple of 16; x, delta, z (B, L, D) and B, C (B, L, N) may have any strides but in their last dimension.
    threshold, scale (B, D). state (B, D, N) is read as the initial and written as the last state.
    """
    rows, L, channels = x.shape
    N = A.shape[1]
    gathered, masked, gated = index.shape[1] > 0, mask.shape[1] > 0, z.shape[2] > 0
    steps = index.shape[1] if gathered else L
    blocks = channels // LANES
    for job in prange(rows * blocks):
        b, d0 = job // blocks, (job % blocks) * LANES
        h = np.empty((N, LANES), np.float32)
        a2 = np.empty((N, LANES), np.float32)
        nothing = np.zeros(N, np.float32)
        per_channel = np.zeros((4, LANES), np.float32)  # bias, threshold (NaN: none), scale, D
        for c in range(LANES):
            spoilt = threshold.size > 0 and np.isnan(threshold[b, d0 + c])
            for n in range(N):
                h[n, c] = state[b, d0 + c, n]
                a2[n, c] = np.float32(np.nan) if spoilt else A[d0 + c, n] * LOG2E
            per_channel[0, c] = bias[d0 + c] if bias.size else np.float32(0.0)
            per_channel[1, c] = threshold[b, d0 + c] if threshold.size else np.float32(np.nan)
            per_channel[2, c] = scale[b, d0 + c] if scale.size else np.float32(1.0)
            per_channel[3, c] = D[d0 + c] if D.size else np.float32(0.0)
        for step in range(steps):
            t = index[b, step] if gathered else step
            if t < 0:
                for c in range(LANES):
                    y[b, step, d0 + c] = np.float32(0.0)
                continue
            seen = not masked or mask[b, t]
            token(
                h, a2, per_channel, nothing,
                x, (b * x.strides[0] + t * x.strides[1]) // 4 + d0,
                delta, (b * delta.strides[0] + t * delta.strides[1]) // 4 + d0,
                z, (b * z.strides[0] + t * z.strides[1]) // 4 + d0 if gated else 0,
                B, (b * B.strides[0] + t * B.strides[1]) // 4,
                C, (b * C.strides[0] + t * C.strides[1]) // 4,
                y, (b * steps + step) * channels + d0,
                seen, use_softplus, D.size > 0, gated,
            )  # fmt: skip
        for c in range(LANES):
            for n in range(N):
                state[b, d0 + c, n] = h[n, c]


@compiled(_STEP, parallel=True)
def step(state, x, delta, A, B, C, D, z, bias, use_softplus, threshold, scale, y):
    """One token: state (B, D, N) in place, x, delta, z (B, D), B, C (B, N); absent options have size 0."""
    rows, channels = x.shape
    N = A.shape[1]
    block = 256
    blocks = (channels + block - 1) // block
    for job in prange(rows * blocks):  # in it one short loop for each stage, so that each is compiled to vectors
        b, first = job // blocks, job % blocks * block
        count = min(block, channels - first)
        v, decay = np.empty(block, np.float32), np.empty(N, np.float32)
        for i in range(count):
            d = first + i
            v[i] = delta[b, d] + bias[d] if bias.size else delta[b, d]
        if use_softplus:
            for i in range(count):
                v[i] = softplus(v[i])
        if threshold.size:
            for i in range(count):
                g = threshold[b, first + i]
                dropped = np.float32(0.0) if v[i] <= g else v[i] + g  # neither <= nor >: one of them is NaN
                kept = v[i] * scale[b, first + i] if scale.size else v[i]
                v[i] = kept if v[i] > g else dropped
        elif scale.size:
            for i in range(count):
                v[i] *= scale[b, first + i]
        for i in range(count):
            d = first + i
            dx = v[i] * x[b, d]
            out = np.float32(0.0)
            for n in range(N):
                decay[n] = exp2_negative(min(v[i] * A[d, n] * LOG2E, np.float32(129.0)))  # infinity from there
            for n in range(N):
                h = decay[n] * state[b, d, n] + dx * B[b, n]
                state[b, d, n] = h
                out += h * C[b, n]
            y[b, d] = out
        if D.size:
            for d in range(first, first + count):
                y[b, d] += D[d] * x[b, d]
        if z.size:
            for d in range(first, first + count):
                y[b, d] *= silu(z[b, d])
