"""The norms on a GPU: a program reads a token's features once, sums their squares and writes them scaled."""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.triton_math import silu


@triton.jit
def rms(x, added, weight, total, y, sx, sa, M, epsilon, HAS_ADDED: tl.constexpr, BLOCK: tl.constexpr):
    """x rows of M, sx elements apart; weight (M,); y (rows, M) contiguous. BLOCK >= M, a power of two. Grid: rows.
    HAS_ADDED: `added`, rows sa apart, comes to x first, and the sum is written to `total`, contiguous, as it is normed.
    """
    i = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    m = o < M
    b_x = tl.load(x + i * sx + o, mask=m, other=0.0).to(tl.float32)
    if HAS_ADDED:
        b_x += tl.load(added + i * sa + o, mask=m, other=0.0).to(tl.float32)
        b_total = b_x.to(total.dtype.element_ty)
        tl.store(total + i * M + o, b_total, mask=m)
        b_x = b_total.to(tl.float32)
    b_w = tl.load(weight + o, mask=m, other=0.0).to(tl.float32)
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / M + epsilon) * b_w
    tl.store(y + i * M + o, b_y.to(y.dtype.element_ty), mask=m)


@triton.jit
def gated_rms(
    x, z, weight, y, sx, sz, M, groups, epsilon,
    HAS_WEIGHT: tl.constexpr, GATE_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, z rows of groups M, sx and sz elements apart; weight (groups M,); y (rows, groups M) contiguous.
    Without a weight the gate alone. BLOCK >= M, a power of two. Grid: (rows, groups)."""
    i, g = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o = tl.arange(0, BLOCK)
    m = o < M
    o += g * M
    b_x = tl.load(x + i * sx + o, mask=m, other=0.0).to(tl.float32)
    b_gate = silu(tl.load(z + i * sz + o, mask=m, other=0.0).to(tl.float32))
    if not GATE_LAST:
        b_x *= b_gate
    if HAS_WEIGHT:
        b_w = tl.load(weight + o, mask=m, other=0.0).to(tl.float32)
        b_x *= tl.rsqrt(tl.sum(b_x * b_x, 0) / M + epsilon) * b_w
    if GATE_LAST:
        b_x *= b_gate
    tl.store(y + i * groups * M + o, b_x.to(y.dtype.element_ty), mask=m)


@triton.jit
def inner_rms(x, y, sx, rank, rest, epsilon, BLOCK: tl.constexpr):
    """x rows of rank + rest + rest, sx elements apart; y contiguous. Each part over its own root mean square.
    BLOCK >= rank, rest, a power of two. Grid: (rows, 3)."""
    i, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = tl.where(part == 0, 0, rank + (part - 1) * rest)
    width = tl.where(part == 0, rank, rest)
    o = tl.arange(0, BLOCK)
    m = o < width
    b_x = tl.load(x + i * sx + first + o, mask=m, other=0.0).to(tl.float32)
    b_y = b_x * tl.rsqrt(tl.sum(b_x * b_x, 0) / width + epsilon)
    tl.store(y + i * (rank + 2 * rest) + first + o, b_y.to(y.dtype.element_ty), mask=m)
