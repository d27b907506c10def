"""One token of the scan on a GPU (decode): the state is read and written once, in place."""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.triton_math import LOG2E, silu, softplus


@triton.jit
def step(
    state, x, delta, A, B, C, D, z, bias, threshold, scale, y,
    sx_b, sd_b, sB_b, sC_b, sz_b, sg_b, channels,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr, HAS_SCALE: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Contiguous: state (B, D, N), A (D, N), y (B, D). x, delta, z: rows of D; B, C: rows of N; s*_b elements apart.
    threshold, scale: rows of D, sg_b elements apart (0 where the batch shares one)."""
    i_d, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    o_n = tl.arange(0, BLOCK_N)
    m_d, m_n = o_d < channels, o_n < N
    m_dn = m_d[:, None] & m_n[None, :]
    o_dn = o_d[:, None] * N + o_n[None, :]
    p_state = state + i_b * channels * N + o_dn
    b_x = tl.load(x + i_b * sx_b + o_d, mask=m_d, other=0.0).to(tl.float32)
    b_delta = tl.load(delta + i_b * sd_b + o_d, mask=m_d, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_delta += tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    if SOFTPLUS:
        b_delta = softplus(b_delta)
    b_kept = b_delta
    if HAS_SCALE:
        b_kept = b_delta * tl.load(scale + i_b * sg_b + o_d, mask=m_d, other=1.0).to(tl.float32)
    if HAS_THRESHOLD:
        b_threshold = tl.load(threshold + i_b * sg_b + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_kept = tl.where(b_delta > b_threshold, b_kept, tl.where(b_delta <= b_threshold, 0.0, float("nan")))
    b_A = tl.load(A + o_dn, mask=m_dn, other=0.0).to(tl.float32) * LOG2E
    b_B = tl.load(B + i_b * sB_b + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_C = tl.load(C + i_b * sC_b + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_h = tl.load(p_state, mask=m_dn, other=0.0)
    b_h = tl.exp2(b_kept[:, None] * b_A) * b_h + (b_kept * b_x)[:, None] * b_B[None, :]
    if N < BLOCK_N:
        b_h = tl.where(m_n[None, :], b_h, 0.0)  # beside the states infinity times 0 is NaN
    tl.store(p_state, b_h, mask=m_dn)
    b_y = tl.sum(b_h * b_C[None, :], axis=1)
    if HAS_D:
        b_y += b_x * tl.load(D + o_d, mask=m_d, other=0.0).to(tl.float32)
    if HAS_Z:
        b_y *= silu(tl.load(z + i_b * sz_b + o_d, mask=m_d, other=0.0).to(tl.float32))
    tl.store(y + i_b * channels + o_d, b_y.to(y.dtype.element_ty), mask=m_d)
