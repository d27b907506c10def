"""Causal depthwise convolution and silu on a GPU."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_math import silu


@triton.jit
def conv_silu(
    x, weight, bias, before, mask, y, sx_b, sx_t, sx_d, L, channels,
    HAS_BIAS: tl.constexpr, HAS_BEFORE: tl.constexpr, HAS_MASK: tl.constexpr,
    W: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """x any strides; contiguous: weight (D, W), before (B, D, W-1), mask (B, L), y (B, L, D)."""
    i_t, i_d, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < channels
    b_y = tl.zeros([BLOCK_T, BLOCK_D], dtype=tl.float32)
    if HAS_BIAS:
        b_y += tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(W):
        o_s = o_t - (W - 1) + k
        seen = (o_s >= 0) & (o_s < L)
        if HAS_MASK:
            seen = seen & (tl.load(mask + i_b * L + o_s, mask=seen, other=0) != 0)
        m_x = seen[:, None] & m_d[None, :]
        b_x = tl.load(x + i_b * sx_b + o_s[:, None] * sx_t + o_d[None, :] * sx_d, mask=m_x, other=0.0).to(tl.float32)
        if HAS_BEFORE:
            early = (o_s < 0)[:, None] & m_d[None, :]
            p_before = before + (i_b * channels + o_d[None, :]) * (W - 1) + (o_s[:, None] + W - 1)
            b_x += tl.load(p_before, mask=early, other=0.0).to(tl.float32)
        b_y += b_x * tl.load(weight + o_d * W + k, mask=m_d, other=0.0).to(tl.float32)[None, :]
    p_y = y + (i_b * L + o_t[:, None]) * channels + o_d[None, :]
    tl.store(p_y, silu(b_y).to(y.dtype.element_ty), mask=(o_t < L)[:, None] & m_d[None, :])
