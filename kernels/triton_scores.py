"""DeciMamba's token scores on a GPU: one read of delta."""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_math import softplus


@triton.jit
def scores(
    delta, bias, mask, weight, out, sd_b, sd_t, sd_d, L, channels,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """out (B, L) = sqrt(sum_d weight_d delta_d^2)."""
    i_t, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    m_t = o_t < L
    b_sum = tl.zeros([BLOCK_T], dtype=tl.float32)
    for start in range(0, channels, BLOCK_D):
        o_d = start + tl.arange(0, BLOCK_D).to(tl.int64)
        m_d = o_d < channels
        m = m_t[:, None] & m_d[None, :]
        b_delta = tl.load(delta + i_b * sd_b + o_t[:, None] * sd_t + o_d[None, :] * sd_d, mask=m, other=0.0)
        b_delta = b_delta.to(tl.float32)
        if HAS_BIAS:
            b_delta += tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
        if SOFTPLUS:
            b_delta = softplus(b_delta)
        b_square = b_delta * b_delta
        if HAS_WEIGHT:
            b_square *= tl.load(weight + o_d, mask=m_d, other=0.0).to(tl.float32)[None, :]
        b_sum += tl.sum(tl.where(m, b_square, 0.0), axis=1)
    if HAS_MASK:
        b_sum = tl.where(tl.load(mask + i_b * L + o_t, mask=m_t, other=0) != 0, b_sum, 0.0)
    tl.store(out + i_b * L + o_t, tl.sqrt(b_sum), mask=m_t)
