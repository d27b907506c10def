"""The selective scan on a GPU, cut into chunks of time where batch and channels alone cannot fill it.

    pass 1  chunk_scan(STATE_ONLY)   every chunk from a zero state -> its last state and its sum of delta
    pass 2  carry                    h_{c+1} = exp(A sum delta_c) h_c + last_c, over the chunks in order
    pass 3  chunk_scan               every chunk again, now from its true initial state -> y

With one chunk only pass 3 runs. A program owns BLOCK_D channels of one row and one chunk and steps through time with a
(BLOCK_D, BLOCK_N) tile of states in registers. Offsets are int64: t times a stride passes 2^31 at 61k tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_math import silu, softplus


@triton.jit
def chunk_scan(
    x, delta, A, B, C, D, z, bias, threshold, scale, index, mask, initial, y, last, delta_sum,
    sx_b, sx_t, sd_b, sd_t, sB_b, sB_t, sC_b, sC_t, sz_b, sz_t, sg_b,
    L, steps, channels, chunks, chunk_size,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_INDEX: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_INITIAL: tl.constexpr, STATE_ONLY: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """x, delta, B, C, z: any row and time strides, channels or states side by side. Contiguous: A (D, N),
    index (B, steps), mask (B, L), y (B, steps, D), initial and last (B, chunks, D, N), delta_sum (B, chunks, D).
    threshold, scale: rows of D, sg_b elements apart (0 where the batch shares one)."""
    i_d = tl.program_id(0).to(tl.int64)
    i_c = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    o_n = tl.arange(0, BLOCK_N)
    m_d, m_n = o_d < channels, o_n < N
    m_dn = m_d[:, None] & m_n[None, :]
    o_dn = o_d[:, None] * N + o_n[None, :]
    b_A = tl.load(A + o_dn, mask=m_dn, other=0.0).to(tl.float32) * 1.4426950408889634
    o_state = (i_b * chunks + i_c) * channels * N + o_dn
    b_h = tl.zeros([BLOCK_D, BLOCK_N], dtype=tl.float32)
    if HAS_INITIAL:
        b_h += tl.load(initial + o_state, mask=m_dn, other=0.0).to(tl.float32)
    b_sum = tl.zeros([BLOCK_D], dtype=tl.float32)
    if HAS_BIAS:
        b_bias = tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    if HAS_THRESHOLD:
        b_threshold = tl.load(threshold + i_b * sg_b + o_d, mask=m_d, other=0.0).to(tl.float32)
    if HAS_SCALE:
        b_scale = tl.load(scale + i_b * sg_b + o_d, mask=m_d, other=1.0).to(tl.float32)
    if HAS_D:
        b_D = tl.load(D + o_d, mask=m_d, other=0.0).to(tl.float32)
    # Bases of this row, once: the loop adds only time.
    x += i_b * sx_b
    delta += i_b * sd_b
    B += i_b * sB_b
    C += i_b * sC_b
    if HAS_Z:
        z += i_b * sz_b
    if HAS_INDEX:
        index += i_b * steps
    if HAS_MASK:
        mask += i_b * L
    y += i_b * steps * channels
    first = i_c * chunk_size
    count = tl.minimum(chunk_size, steps - first)
    for i in range(0, count):
        k = first + i
        t = k
        present = True
        if HAS_INDEX:
            t = tl.load(index + k)
            present = t >= 0
            t = tl.maximum(t, 0)
        b_x = tl.load(x + t * sx_t + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_delta = tl.load(delta + t * sd_t + o_d, mask=m_d, other=0.0).to(tl.float32)
        if HAS_BIAS:
            b_delta += b_bias
        if SOFTPLUS:
            b_delta = softplus(b_delta)
        b_kept = b_delta
        if HAS_SCALE:
            b_kept = b_delta * b_scale
        if HAS_THRESHOLD:
            b_kept = tl.where(b_delta > b_threshold, b_kept, 0.0)
        if HAS_MASK:
            b_kept = tl.where(tl.load(mask + t) != 0, b_kept, 0.0)
        if HAS_INDEX:
            b_kept = tl.where(present, b_kept, 0.0)
        b_B = tl.load(B + t * sB_t + o_n, mask=m_n, other=0.0).to(tl.float32)
        b_h = tl.exp2(b_kept[:, None] * b_A) * b_h + (b_kept * b_x)[:, None] * b_B[None, :]
        if STATE_ONLY:
            b_sum += b_kept
        else:
            b_C = tl.load(C + t * sC_t + o_n, mask=m_n, other=0.0).to(tl.float32)
            b_y = tl.sum(b_h * b_C[None, :], axis=1)
            if HAS_D:
                b_y += b_D * b_x
            if HAS_Z:
                b_y *= silu(tl.load(z + t * sz_t + o_d, mask=m_d, other=0.0).to(tl.float32))
            if HAS_INDEX:
                b_y = tl.where(present, b_y, 0.0)
            tl.store(y + k * channels + o_d, b_y.to(y.dtype.element_ty), mask=m_d)
    if STATE_ONLY:
        tl.store(last + o_state, b_h, mask=m_dn)
        tl.store(delta_sum + (i_b * chunks + i_c) * channels + o_d, b_sum, mask=m_d)
    else:
        if i_c == chunks - 1:
            tl.store(last + i_b * channels * N + o_dn, b_h, mask=m_dn)


@triton.jit
def carry(
    A, initial, states, delta_sum, channels, chunks,
    HAS_INITIAL: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """states (B, chunks, D, N): each chunk's last state from zero -> its initial state, in place."""
    i_d, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    o_n = tl.arange(0, BLOCK_N)
    m_d = o_d < channels
    m_dn = m_d[:, None] & (o_n < N)[None, :]
    o_dn = o_d[:, None] * N + o_n[None, :]
    b_A = tl.load(A + o_dn, mask=m_dn, other=0.0).to(tl.float32) * 1.4426950408889634
    b_h = tl.zeros([BLOCK_D, BLOCK_N], dtype=tl.float32)
    if HAS_INITIAL:
        b_h += tl.load(initial + i_b * channels * N + o_dn, mask=m_dn, other=0.0).to(tl.float32)
    for c in range(0, chunks):
        at = i_b * chunks + c
        p_state = states + at * channels * N + o_dn
        b_last = tl.load(p_state, mask=m_dn, other=0.0)
        b_sum = tl.load(delta_sum + at * channels + o_d, mask=m_d, other=0.0)
        tl.store(p_state, b_h, mask=m_dn)
        b_h = tl.exp2(b_sum[:, None] * b_A) * b_h + b_last
