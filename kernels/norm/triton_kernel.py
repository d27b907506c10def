"""RMSNorm on a GPU: a program reads a token's features once, sums their squares and writes them scaled."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rms(x, weight, y, sx, M, epsilon, BLOCK: tl.constexpr):
    """x rows of M, sx elements apart; weight (M,); y (rows, M) contiguous. BLOCK >= M, a power of two. Grid: rows."""
    i = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    m = o < M
    b_x = tl.load(x + i * sx + o, mask=m, other=0.0).to(tl.float32)
    b_w = tl.load(weight + o, mask=m, other=0.0).to(tl.float32)
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / M + epsilon) * b_w
    tl.store(y + i * M + o, b_y.to(y.dtype.element_ty), mask=m)
