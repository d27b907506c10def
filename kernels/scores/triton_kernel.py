"""DeciMamba's token scores on a GPU: one read of delta. A program is one warp and owns a few tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.triton_math import softplus
from ..shared.triton_tiles import load


@triton.jit(do_not_specialize=["L"])  # one binary for every length
def scores(
    delta, bias, mask, weight, out, sd_b, sd_t, L, channels,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    EVEN: tl.constexpr, CH: tl.constexpr, UNROLL: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """out (B, L) = sqrt(sum_d weight_d delta_d^2). delta: any row and time strides, channels side by side, CH divides
    them; EVEN: they are a multiple of LANES CH. Contiguous: mask (B, L)."""
    i_t, i_b = tl.program_id(0).to(tl.int64) * UNROLL, tl.program_id(1).to(tl.int64)
    o_d = tl.arange(0, LANES)[:, None, None] * CH + tl.arange(0, CH)[None, None, :]
    delta += i_b * sd_b
    sums = ()
    for _ in tl.static_range(UNROLL):
        sums = sums + (tl.zeros([LANES, 1], dtype=tl.float32),)
    for d in range(0, channels, LANES * CH):
        m_d = o_d + d < channels
        if HAS_BIAS:
            b_bias = load(bias + d + o_d, m_d, not EVEN)
        if HAS_WEIGHT:
            b_weight = load(weight + d + o_d, m_d, not EVEN)
        inside = tl.arange(0, LANES)[:, None] * CH + d < channels  # CH divides channels
        rows = ()
        for u in tl.static_range(UNROLL):
            # The last program reads its last token again rather than past the end; what it finds is not stored.
            rows = rows + load(delta + tl.minimum(i_t + u, L - 1) * sd_t + d + o_d, m_d, not EVEN)
        totals = ()
        for u in tl.static_range(UNROLL):
            total = sums[u]
            for c in tl.static_range(CH):
                b_delta = rows[u * CH + c]
                if HAS_BIAS:
                    b_delta += b_bias[c]
                if SOFTPLUS:
                    b_delta = softplus(b_delta)
                if not EVEN:
                    b_delta = tl.where(inside, b_delta, 0.0)
                square = b_delta
                if HAS_WEIGHT:
                    square = b_delta * b_weight[c]
                total = square * b_delta + total
            totals = totals + (total,)
        sums = totals
    for u in tl.static_range(UNROLL):
        b_sum = tl.sum(sums[u])
        seen = i_t + u < L
        if HAS_MASK:
            b_sum = tl.where(tl.load(mask + i_b * L + i_t + u, mask=seen, other=0) != 0, b_sum, 0.0)
        tl.store(out + i_b * L + i_t + u, tl.sqrt(b_sum), mask=seen)
