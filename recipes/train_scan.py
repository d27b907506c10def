"""Selective scan with a backward pass, for training the demo model on a CPU.

    B rows   L tokens   D channels (a multiple of 16)   N states

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t      y_t = h_t . C_t

Sixteen channels fill one AVX-512 register; the states of one row and block of channels over the whole (short) window
stay in the second-level cache, so the backward pass recomputes instead of storing them.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic
from torch import Tensor

LANES = 16
_LOG2E = np.float32(1.4426950408889634)


@intrinsic
def _as_float(context, bits):
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit(inline="always", fastmath=True)
def _exp2(x):
    """2^x for x <= 0, to 1.3e-7: round, then a polynomial on [-0.5, 0.5]."""
    x = max(x, np.float32(-125.0))
    i = np.int32(x - np.float32(0.5))
    f = x - np.float32(i)
    p = np.float32(1.5403530e-4)
    p = p * f + np.float32(1.3333558e-3)
    p = p * f + np.float32(9.6181291e-3)
    p = p * f + np.float32(5.5504109e-2)
    p = p * f + np.float32(2.4022651e-1)
    p = p * f + np.float32(6.9314718e-1)
    p = p * f + np.float32(1.0)
    return p * _as_float((i + np.int32(127)) << np.int32(23))


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _forward(u, delta, A2, B, C, y):
    rows, L, D = u.shape
    N = B.shape[2]
    blocks = D // LANES
    for job in prange(rows * blocks):
        b, d0 = job // blocks, (job % blocks) * LANES
        h = np.zeros((N, LANES), np.float32)
        a2 = np.empty((N, LANES), np.float32)
        acc = np.empty(LANES, np.float32)
        du = np.empty(LANES, np.float32)
        dt = np.empty(LANES, np.float32)
        for n in range(N):
            for c in range(LANES):
                a2[n, c] = A2[d0 + c, n]
        for t in range(L):
            for c in range(LANES):
                dt[c] = delta[b, t, d0 + c]
                du[c] = dt[c] * u[b, t, d0 + c]
                acc[c] = np.float32(0.0)
            for n in range(N):
                Bn, Cn = B[b, t, n], C[b, t, n]
                for c in range(LANES):
                    v = _exp2(dt[c] * a2[n, c]) * h[n, c] + du[c] * Bn
                    h[n, c] = v
                    acc[c] += v * Cn
            for c in range(LANES):
                y[b, t, d0 + c] = acc[c]


@njit(parallel=True, fastmath=True, cache=True, error_model="numpy")
def _backward(u, delta, A, B, C, dy, du, ddelta, dA, dB, dC):
    rows, L, D = u.shape
    N = B.shape[2]
    blocks = D // LANES
    for b in prange(rows):
        hs = np.empty((L + 1, N, LANES), np.float32)
        decay = np.empty((L, N, LANES), np.float32)
        g = np.empty((N, LANES), np.float32)
        a1 = np.empty((N, LANES), np.float32)
        a2 = np.empty((N, LANES), np.float32)
        da = np.empty((N, LANES), np.float32)
        dt = np.empty(LANES, np.float32)
        x = np.empty(LANES, np.float32)
        dyt = np.empty(LANES, np.float32)
        sum_gb = np.empty(LANES, np.float32)
        sum_ga = np.empty(LANES, np.float32)
        for block in range(blocks):
            d0 = block * LANES
            for n in range(N):
                for c in range(LANES):
                    a1[n, c] = A[d0 + c, n]
                    a2[n, c] = a1[n, c] * _LOG2E
                    hs[0, n, c] = np.float32(0.0)
                    g[n, c] = np.float32(0.0)
                    da[n, c] = np.float32(0.0)
            for t in range(L):
                for c in range(LANES):
                    dt[c] = delta[b, t, d0 + c]
                    x[c] = dt[c] * u[b, t, d0 + c]
                for n in range(N):
                    Bn = B[b, t, n]
                    for c in range(LANES):
                        a = _exp2(dt[c] * a2[n, c])
                        decay[t, n, c] = a
                        hs[t + 1, n, c] = a * hs[t, n, c] + x[c] * Bn
            for s in range(L):
                t = L - 1 - s
                for c in range(LANES):
                    dt[c] = delta[b, t, d0 + c]
                    x[c] = dt[c] * u[b, t, d0 + c]
                    dyt[c] = dy[b, t, d0 + c]
                    sum_gb[c] = np.float32(0.0)
                    sum_ga[c] = np.float32(0.0)
                for n in range(N):
                    Bn, Cn = B[b, t, n], C[b, t, n]
                    to_c = np.float32(0.0)
                    to_b = np.float32(0.0)
                    for c in range(LANES):
                        gn = g[n, c] + Cn * dyt[c]
                        to_c += dyt[c] * hs[t + 1, n, c]
                        to_b += gn * x[c]
                        sum_gb[c] += gn * Bn
                        g_next = gn * decay[t, n, c]
                        through = g_next * hs[t, n, c]
                        sum_ga[c] += through * a1[n, c]
                        da[n, c] += through * dt[c]
                        g[n, c] = g_next
                    dB[b, t, n] += to_b
                    dC[b, t, n] += to_c
                for c in range(LANES):
                    du[b, t, d0 + c] = dt[c] * sum_gb[c]
                    ddelta[b, t, d0 + c] = u[b, t, d0 + c] * sum_gb[c] + sum_ga[c]
            for n in range(N):
                for c in range(LANES):
                    dA[b, d0 + c, n] = da[n, c]


class SelectiveScan(torch.autograd.Function):
    """scan(u, delta, A, B, C) -> y; float32, contiguous, zero initial state. delta is after the softplus."""

    @staticmethod
    def forward(ctx, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        u, delta, B, C = (t.contiguous() for t in (u, delta, B, C))
        if u.shape[2] % LANES:
            raise ValueError(f"the training scan takes channels in multiples of {LANES}, found {u.shape[2]}")
        ctx.save_for_backward(u, delta, A, B, C)
        y = torch.empty_like(u)
        A2 = (A.detach() * float(_LOG2E)).numpy()
        _forward(u.detach().numpy(), delta.detach().numpy(), A2, B.detach().numpy(), C.detach().numpy(), y.numpy())
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        u, delta, A, B, C = ctx.saved_tensors
        du, ddelta = torch.empty_like(u), torch.empty_like(u)
        dA = torch.empty(u.shape[0], *A.shape)
        dB, dC = torch.zeros_like(B), torch.zeros_like(C)
        arrays = (u, delta, A, B, C, dy.contiguous(), du, ddelta, dA, dB, dC)
        _backward(*(t.detach().numpy() for t in arrays))
        return du, ddelta, dA.sum(0), dB, dC


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """u, delta (B, L, D), A (D, N) < 0, B, C (B, L, N) -> y (B, L, D), differentiable in all five."""
    return SelectiveScan.apply(u, delta, A, B, C)
