"""The plain way to write the scan in Triton: a program owns a few channels and walks through time, (channels, states)
tiles in registers, nothing else. What benchmarks/kernels.py compares with; contiguous inputs only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _scan(x, delta, A, B, C, D, z, bias, y, L, channels, N: tl.constexpr, BLOCK_D: tl.constexpr):
    o_d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    o_n = tl.arange(0, N)
    m_d = o_d < channels
    b_A = tl.load(A + o_d[:, None] * N + o_n[None, :], mask=m_d[:, None], other=0.0)
    b_bias = tl.load(bias + o_d, mask=m_d, other=0.0)
    b_D = tl.load(D + o_d, mask=m_d, other=0.0)
    b_h = tl.zeros([BLOCK_D, N], dtype=tl.float32)
    row = tl.program_id(1).to(tl.int64) * L
    for t in range(0, L):
        o_t = (row + t) * channels + o_d
        b_x = tl.load(x + o_t, mask=m_d, other=0.0).to(tl.float32)
        b_delta = tl.load(delta + o_t, mask=m_d, other=0.0).to(tl.float32) + b_bias
        b_delta = tl.where(b_delta > 20.0, b_delta, tl.log(1.0 + tl.exp(b_delta)))
        b_B = tl.load(B + (row + t) * N + o_n).to(tl.float32)
        b_C = tl.load(C + (row + t) * N + o_n).to(tl.float32)
        b_h = tl.exp(b_delta[:, None] * b_A) * b_h + (b_delta * b_x)[:, None] * b_B[None, :]
        b_z = tl.load(z + o_t, mask=m_d, other=0.0).to(tl.float32)
        b_y = (tl.sum(b_h * b_C[None, :], axis=1) + b_x * b_D) * b_z * tl.sigmoid(b_z)
        tl.store(y + o_t, b_y.to(y.dtype.element_ty), mask=m_d)


def sequential_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """x, delta, z (B, L, D); A (D, N), N a power of two; B, C (B, L, N); D, bias (D,) -> y (B, L, D)."""
    batch, L, channels = x.shape
    y, BLOCK_D = torch.empty_like(x), 4
    grid = (triton.cdiv(channels, BLOCK_D), batch)
    _scan[grid](x, delta, A, B, C, D, z, bias, y, L, channels, N=A.shape[1], BLOCK_D=BLOCK_D, num_warps=1)
    return y
