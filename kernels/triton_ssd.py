"""Mamba-2's scan on a GPU: chunks as matrix products on the tensor cores, the state in registers between them.

A program owns a block of a head's channels and one piece of the sequence, and walks it in chunks of Q tokens:

    y_t = sum_{j <= t} (C_t . B_j) exp(s_t - s_j) delta_j x_j  +  exp(s_t) C_t . h
    h'  = exp(s_Q) h + sum_j exp(s_Q - s_j) delta_j x_j (x) B_j          s_t = sum of delta A over the first t tokens

Several pieces are two passes: states only, then `ssd_carry` turns what each piece adds into what the next starts at.
Differences of sums are kept exact: a token's log2 decay is an integer and a fraction of at most a half, summed apart.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_math import LOG2E, silu, softplus


@triton.jit
def ssd(
    x, delta, A, B, C, D, z, bias, threshold, scale, index, mask, initial, y, last, delta_sum,
    sx_b, sx_t, sx_h, sd_b, sd_t, sB_b, sB_t, sB_g, sC_b, sC_t, sC_g, sz_b, sz_t, sz_h, sg_b, sD_h,
    L, steps, heads, shared, pieces, piece_size, low, high,
    HAS_D: tl.constexpr, D_WIDE: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    LIMITED: tl.constexpr, HAS_THRESHOLD: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_INDEX: tl.constexpr,
    HAS_MASK: tl.constexpr, HAS_INITIAL: tl.constexpr, STATE_ONLY: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x, z, y (B, tokens, H, P), delta (B, L, H), B, C (B, L, G, N): last dimension side by side, s*_* elements apart.
    initial: (B, pieces, H, P, N), delta_sum: (B, pieces, H); last: (B, H, P, N), of each piece where STATE_ONLY.
    threshold, scale: rows of H, sg_b apart. Grid: (heads * blocks of P, pieces, B)."""
    blocks: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    i_h, i_p = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    i_c, i_b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_g = i_h // shared
    o_p, o_n, o_q = i_p * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, Q)
    m_p, m_n = o_p < P, o_n < N
    m_pn = m_p[:, None] & m_n[None, :]
    x += i_b * sx_b + i_h * sx_h
    delta += i_b * sd_b + i_h
    B += i_b * sB_b + i_g * sB_g
    C += i_b * sC_b + i_g * sC_g
    o_pn = o_p[:, None] * N + o_n[None, :]
    o_piece = ((i_b * pieces + i_c) * heads + i_h) * P * N
    if HAS_INITIAL:
        b_h = tl.load(initial + o_piece + o_pn, mask=m_pn, other=0.0)
    else:
        b_h = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    a = tl.load(A + i_h).to(tl.float32) * LOG2E
    dtype = x.dtype.element_ty
    total = 0.0
    first = i_c * piece_size
    end = tl.minimum(first + piece_size, steps)
    for start in range(first, end, Q):
        o_k = start + o_q
        m_k = o_k < end
        if HAS_INDEX:
            o_t = tl.load(index + i_b * steps + o_k, mask=m_k, other=-1)
            m_t = o_t >= 0
        else:
            o_t, m_t = o_k, m_k

        b_delta = tl.load(delta + o_t * sd_t, mask=m_t, other=0.0).to(tl.float32)
        if HAS_BIAS:
            b_delta += tl.load(bias + i_h).to(tl.float32)
        if SOFTPLUS:
            b_delta = softplus(b_delta)
        if LIMITED:
            b_delta = tl.minimum(tl.maximum(b_delta, low), high)
        kept = m_t
        if HAS_THRESHOLD:
            kept = kept & (b_delta > tl.load(threshold + i_b * sg_b + i_h).to(tl.float32))
        if HAS_MASK:
            kept = kept & (tl.load(mask + i_b * L + o_t, mask=m_t, other=0) != 0)
        if HAS_SCALE:
            b_delta *= tl.load(scale + i_b * sg_b + i_h).to(tl.float32)
        b_delta = tl.where(kept, b_delta, 0.0)
        total += tl.sum(b_delta, 0)

        # 2^-1000 is 0 already; with the bound the whole parts of a chunk add up exactly.
        b_log = tl.maximum(b_delta * a, -1000.0)
        b_whole = tl.floor(b_log + 0.5)
        b_part = b_log - b_whole
        s_whole, s_part = tl.cumsum(b_whole, 0), tl.cumsum(b_part, 0)
        all_whole, all_part = tl.sum(b_whole, 0), tl.sum(b_part, 0)

        m_tn = m_t[:, None] & m_n[None, :]
        b_B = tl.load(B + o_t[:, None] * sB_t + o_n[None, :], mask=m_tn, other=0.0).to(dtype)
        m_tp = m_t[:, None] & m_p[None, :]
        b_x = tl.load(x + o_t[:, None] * sx_t + o_p[None, :], mask=m_tp, other=0.0)
        if not STATE_ONLY:
            b_C = tl.load(C + o_t[:, None] * sC_t + o_n[None, :], mask=m_tn, other=0.0).to(dtype)
            b_gap = (s_whole[:, None] - s_whole[None, :]) + (s_part[:, None] - s_part[None, :])
            b_gap = tl.where(o_q[:, None] >= o_q[None, :], tl.minimum(b_gap, 0.0), -float("inf"))
            b_S = tl.dot(b_C, tl.trans(b_B), input_precision=PRECISION)
            b_S = b_S * tl.exp2(b_gap) * b_delta[None, :]
            b_y = tl.dot(b_C, tl.trans(b_h.to(dtype)), input_precision=PRECISION)
            b_y = b_y * tl.exp2(s_whole + s_part)[:, None]
            b_y += tl.dot(b_S.to(dtype), b_x, input_precision=PRECISION)
            if HAS_D:
                if D_WIDE:
                    b_y += b_x.to(tl.float32) * tl.load(D + i_h * sD_h + o_p, mask=m_p, other=0.0).to(tl.float32)
                else:
                    b_y += b_x.to(tl.float32) * tl.load(D + i_h * sD_h).to(tl.float32)
            if HAS_Z:
                p_z = z + i_b * sz_b + o_t[:, None] * sz_t + i_h * sz_h + o_p[None, :]
                b_y *= silu(tl.load(p_z, mask=m_tp, other=0.0).to(tl.float32))
            p_y = y + ((i_b * steps + o_k[:, None]) * heads + i_h) * P + o_p[None, :]
            tl.store(p_y, b_y.to(y.dtype.element_ty), mask=m_k[:, None] & m_p[None, :])

        b_left = tl.exp2((all_whole - s_whole) + (all_part - s_part)) * b_delta
        b_dx = (b_x.to(tl.float32) * b_left[:, None]).to(dtype)
        b_h = b_h * tl.exp2(all_whole + all_part) + tl.dot(tl.trans(b_dx), b_B, input_precision=PRECISION)
    if STATE_ONLY:
        tl.store(last + o_piece + o_pn, b_h, mask=m_pn)
        tl.store(delta_sum + (i_b * pieces + i_c) * heads + i_h, total, mask=i_p == 0)
    elif i_c == pieces - 1:
        tl.store(last + (i_b * heads + i_h) * P * N + o_pn, b_h, mask=m_pn)


@triton.jit
def ssd_carry(
    A, initial, states, delta_sum, heads, pieces, size,
    HAS_INITIAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """states (B, pieces, H, size = P N): what each piece adds, replaced by what it starts at; delta_sum (B, pieces, H).
    initial (B, H, size). Grid: (blocks of size, H, B)."""
    i_h, i_b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_s = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_s = o_s < size
    a = tl.load(A + i_h).to(tl.float32) * LOG2E
    if HAS_INITIAL:
        b_h = tl.load(initial + (i_b * heads + i_h) * size + o_s, mask=m_s, other=0.0)
    else:
        b_h = tl.zeros((BLOCK,), tl.float32)
    for i_c in range(pieces):
        at = (i_b * pieces + i_c) * heads + i_h
        added = tl.load(states + at * size + o_s, mask=m_s & (i_c < pieces - 1), other=0.0)
        tl.store(states + at * size + o_s, b_h, mask=m_s)
        if i_c < pieces - 1:
            b_h = tl.exp2(tl.load(delta_sum + at) * a) * b_h + added


@triton.jit
def ssd_token(
    state, x, delta, A, B, C, D, z, bias, threshold, scale, y,
    sx_b, sx_h, sd_b, sB_b, sB_g, sC_b, sC_g, sz_b, sz_h, sg_b, sD_h, heads, shared, low, high,
    HAS_D: tl.constexpr, D_WIDE: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    LIMITED: tl.constexpr, HAS_THRESHOLD: tl.constexpr, HAS_SCALE: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One token: state (B, H, P, N) read and written once, in place; y (B, H, P). Grid: (blocks of P, H, B)."""
    i_h, i_b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    i_g = i_h // shared
    o_p, o_n = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
    m_p, m_n = o_p < P, o_n < N
    m_pn = m_p[:, None] & m_n[None, :]
    b_delta = tl.load(delta + i_b * sd_b + i_h).to(tl.float32)
    if HAS_BIAS:
        b_delta += tl.load(bias + i_h).to(tl.float32)
    if SOFTPLUS:
        b_delta = softplus(b_delta)
    if LIMITED:
        b_delta = tl.minimum(tl.maximum(b_delta, low), high)
    b_kept = b_delta
    if HAS_SCALE:
        b_kept = b_delta * tl.load(scale + i_b * sg_b + i_h).to(tl.float32)
    if HAS_THRESHOLD:
        b_kept = tl.where(b_delta > tl.load(threshold + i_b * sg_b + i_h).to(tl.float32), b_kept, 0.0)
    b_x = tl.load(x + i_b * sx_b + i_h * sx_h + o_p, mask=m_p, other=0.0).to(tl.float32)
    b_B = tl.load(B + i_b * sB_b + i_g * sB_g + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_C = tl.load(C + i_b * sC_b + i_g * sC_g + o_n, mask=m_n, other=0.0).to(tl.float32)
    p_state = state + ((i_b * heads + i_h) * P + o_p[:, None]) * N + o_n[None, :]
    b_h = tl.load(p_state, mask=m_pn, other=0.0)
    b_h = tl.exp2(b_kept * tl.load(A + i_h).to(tl.float32) * LOG2E) * b_h + (b_kept * b_x)[:, None] * b_B[None, :]
    tl.store(p_state, b_h, mask=m_pn)
    b_y = tl.sum(b_h * b_C[None, :], axis=1)
    if HAS_D:
        if D_WIDE:
            b_y += b_x * tl.load(D + i_h * sD_h + o_p, mask=m_p, other=0.0).to(tl.float32)
        else:
            b_y += b_x * tl.load(D + i_h * sD_h).to(tl.float32)
    if HAS_Z:
        b_y *= silu(tl.load(z + i_b * sz_b + i_h * sz_h + o_p, mask=m_p, other=0.0).to(tl.float32))
    tl.store(y + (i_b * heads + i_h) * P + o_p, b_y.to(y.dtype.element_ty), mask=m_p)
