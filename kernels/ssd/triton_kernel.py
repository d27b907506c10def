"""Mamba-2's scan on a GPU: chunks of the sequence as matrix products on the tensor cores, in four passes.

    ssd_states    what each chunk adds to the state:   sum_j exp(s_C - s_j) delta_j x_j (x) B_j
    ssd_carry     what each chunk starts at:           h' = exp(s_C) h + what the chunk adds
    ssd_pairs     C_t . B_j within a chunk, once for all heads that share B and C
    ssd_outputs   y_t = sum_{j <= t} (C_t . B_j) exp(s_t - s_j) delta_j x_j  +  exp(s_t) C_t . h

s_t is the sum of delta A from the chunk's start. Differences of such sums are kept exact: a token's log2 decay is an
integer and a fraction of at most a half, summed apart (`whole`, `part`). A head reads B and C of group head // shared.
Between the passes time is padded to whole chunks, with tokens that do nothing: those vectors need no masks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.triton_math import ALL, LOG2E, silu, softplus


@triton.jit
def head_delta(
    b_delta, i_h, row, bias, threshold, scale, low, high,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, LIMITED: tl.constexpr, HAS_THRESHOLD: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):  # fmt: skip
    """delta as the recurrence sees it: bias, softplus, limits, then the filter and its factor, of row `row`."""
    if HAS_BIAS:
        b_delta += tl.load(bias + i_h).to(tl.float32)
    if SOFTPLUS:
        b_delta = softplus(b_delta)
    if LIMITED:
        b_delta = tl.minimum(tl.maximum(b_delta, low, propagate_nan=ALL), high, propagate_nan=ALL)
    b_kept = b_delta
    if HAS_SCALE:
        b_kept = b_delta * tl.load(scale + row + i_h).to(tl.float32)
    if HAS_THRESHOLD:
        b_threshold = tl.load(threshold + row + i_h).to(tl.float32)
        b_kept = tl.where(b_delta > b_threshold, b_kept, tl.where(b_delta <= b_threshold, 0.0, float("nan")))
    return b_kept


@triton.jit
def places(index, o_k, i_b, steps, L, HAS_INDEX: tl.constexpr):
    """Where the scan's tokens o_k stand in the sequence, and which of them it has."""
    m_t = o_k < steps
    o_t = o_k
    if HAS_INDEX:
        o_t = tl.load(index + i_b * steps + o_k, mask=m_t, other=-1)
        m_t = (o_t >= 0) & (o_t < L)  # nothing outside is read, even before the check has spoken
    return o_t, m_t


@triton.jit(do_not_specialize=["L", "steps", "chunks"])  # one binary for every length
def ssd_states(
    x, delta, A, B, bias, threshold, scale, index, mask, kept, whole, part, states,
    sx_b, sx_t, sx_h, sd_b, sd_t, sB_b, sB_t, sB_g, sg_b, L, steps, heads, shared, chunks, low, high,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, LIMITED: tl.constexpr, HAS_THRESHOLD: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_INDEX: tl.constexpr, HAS_MASK: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, Q: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x (B, L, H, P), delta (B, L, H), B (B, L, G, N): last dimension side by side, s*_* elements apart.
    threshold, scale: rows of H, sg_b apart. Written: states (B, chunks, H, N, P) float32, and of each token of the
    scan kept, whole, part (B, H, chunks CHUNK) float32. Grid: (chunks * heads * blocks of P, B)."""
    blocks: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    i_c, i_b = tl.program_id(0).to(tl.int64) // (heads * blocks), tl.program_id(1).to(tl.int64)
    i_h, i_p = (tl.program_id(0) // blocks % heads).to(tl.int64), tl.program_id(0) % blocks
    o_p, o_n, o_q = i_p * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N), tl.arange(0, Q)
    m_p, m_n = o_p < P, o_n < N
    x += i_b * sx_b + i_h * sx_h
    delta += i_b * sd_b + i_h
    B += i_b * sB_b + (i_h // shared) * sB_g
    row = (i_b * heads + i_h) * chunks * CHUNK
    a = tl.load(A + i_h).to(tl.float32) * LOG2E
    b_h = tl.zeros((BLOCK_N, BLOCK_P), tl.float32)
    before_whole, before_part = 0.0, 0.0
    first = i_c * CHUNK
    for start in range(0, CHUNK, Q):
        o_k = first + start + o_q
        o_t, m_t = places(index, o_k, i_b, steps, L, HAS_INDEX)
        b_delta = tl.load(delta + o_t * sd_t, mask=m_t, other=0.0).to(tl.float32)
        b_delta = head_delta(
            b_delta, i_h, i_b * sg_b, bias, threshold, scale, low, high,
            HAS_BIAS, SOFTPLUS, LIMITED, HAS_THRESHOLD, HAS_SCALE,
        )  # fmt: skip
        seen = m_t
        if HAS_MASK:
            seen = seen & (tl.load(mask + i_b * L + o_t, mask=m_t, other=0) != 0)
        b_delta = tl.where(seen, b_delta, 0.0)

        # 2^-1000 is 0 already; with the bound the whole parts of a chunk add up exactly.
        b_log = tl.where(seen, tl.maximum(b_delta * a, -1000.0, propagate_nan=ALL), 0.0)
        b_whole = tl.floor(b_log + 0.5)
        b_part = b_log - b_whole
        s_whole, s_part = tl.cumsum(b_whole, 0), tl.cumsum(b_part, 0)
        all_whole, all_part = tl.sum(b_whole, 0), tl.sum(b_part, 0)
        if i_p == 0:
            tl.store(kept + row + o_k, b_delta)
            tl.store(whole + row + o_k, before_whole + s_whole)
            tl.store(part + row + o_k, before_part + s_part)
        before_whole += all_whole
        before_part += all_part

        b_B = tl.load(B + o_t[:, None] * sB_t + o_n[None, :], mask=seen[:, None] & m_n[None, :], other=0.0)
        b_x = tl.load(x + o_t[:, None] * sx_t + o_p[None, :], mask=seen[:, None] & m_p[None, :], other=0.0)
        b_left = tl.exp2((all_whole - s_whole) + (all_part - s_part)) * b_delta
        b_dx = (b_x.to(tl.float32) * b_left[:, None]).to(b_x.dtype)
        b_h *= tl.exp2(all_whole + all_part)
        b_h += tl.dot(tl.trans(b_B.to(b_x.dtype)), b_dx, input_precision=PRECISION)
    p_states = states + ((i_b * chunks + i_c) * heads + i_h) * N * P + o_n[:, None] * P + o_p[None, :]
    tl.store(p_states, b_h, mask=m_n[:, None] & m_p[None, :])


@triton.jit(do_not_specialize=["chunks"])
def ssd_carry(
    initial, states, whole, part, starts, last, heads, chunks,
    HAS_INITIAL: tl.constexpr, P: tl.constexpr, N: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """states (B, chunks, H, N, P): what each chunk adds -> starts, in the dtype of the products, what each starts at
    (it may be `states` itself). initial, last (B, H, P, N). AHEAD chunks are read before the first is carried on.
    Grid: (blocks of N P, H, B)."""
    i_h, i_b = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_s = o_s < N * P
    head = i_b * heads + i_h
    o_pn = head * P * N + (o_s % P) * N + o_s // P
    if HAS_INITIAL:
        b_h = tl.load(initial + o_pn, mask=m_s, other=0.0)
    else:
        b_h = tl.zeros((BLOCK,), tl.float32)
    apart = tl.cast(heads, tl.int64) * N * P
    at = (i_b * chunks * heads + i_h) * N * P + o_s
    ends = head * chunks * CHUNK + CHUNK - 1
    for i_c in range(0, chunks, AHEAD):
        added, decays = (), ()
        for u in tl.static_range(AHEAD):
            m_c = m_s & (o_s * 0 + i_c + u < chunks)
            added = added + (tl.load(states + at + u * apart, mask=m_c, other=0.0),)
            end = ends + tl.minimum(i_c + u, chunks - 1) * CHUNK
            decays = decays + (tl.load(whole + end) + tl.load(part + end),)
        for u in tl.static_range(AHEAD):
            m_c = m_s & (o_s * 0 + i_c + u < chunks)
            tl.store(starts + at + u * apart, b_h.to(starts.dtype.element_ty), mask=m_c)
            b_h = tl.where(m_c, tl.exp2(decays[u]) * b_h + added[u], b_h)
        at += AHEAD * apart
    tl.store(last + o_pn, b_h, mask=m_s)


@triton.jit(do_not_specialize=["L", "steps", "chunks"])
def ssd_pairs(
    B, C, index, mask, pairs, sB_b, sB_t, sB_g, sC_b, sC_t, sC_g, L, steps, groups, chunks,
    HAS_INDEX: tl.constexpr, HAS_MASK: tl.constexpr, N: tl.constexpr, BLOCK_N: tl.constexpr, K: tl.constexpr,
    Q: tl.constexpr, CHUNK: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """pairs (B, G, chunks CHUNK, CHUNK) float32: C_t . B_j of the tokens of a chunk, where j's block of Q is not after
    t's; else not written. DTYPE: of the products. Grid: (blocks of t, blocks of j, B G)."""
    i_t, i_j = tl.program_id(0), tl.program_id(1)
    i_b, i_g = tl.program_id(2).to(tl.int64) // groups, tl.program_id(2).to(tl.int64) % groups
    o_q, o_n = tl.arange(0, Q), tl.arange(0, K)
    first = (i_t // (CHUNK // Q)).to(tl.int64) * CHUNK
    o_k, o_j = i_t.to(tl.int64) * Q + o_q, first + i_j * Q + o_q
    if i_t % (CHUNK // Q) < i_j:
        return
    B += i_b * sB_b + i_g * sB_g
    C += i_b * sC_b + i_g * sC_g
    o_t, m_k = places(index, o_k, i_b, steps, L, HAS_INDEX)
    o_u, m_j = places(index, o_j, i_b, steps, L, HAS_INDEX)
    if HAS_MASK:
        m_j = m_j & (tl.load(mask + i_b * L + o_u, mask=m_j, other=0) != 0)
    b_S = tl.zeros((Q, Q), tl.float32)
    for n in range(0, BLOCK_N, K):
        m_n = (o_n < N - n)[None, :]
        b_C = tl.load(C + o_t[:, None] * sC_t + (o_n + n)[None, :], mask=m_k[:, None] & m_n, other=0.0)
        b_B = tl.load(B + o_u[:, None] * sB_t + (o_n + n)[None, :], mask=m_j[:, None] & m_n, other=0.0)
        b_S += tl.dot(b_C.to(DTYPE), tl.trans(b_B.to(DTYPE)), input_precision=PRECISION)
    p_pairs = pairs + (tl.program_id(2).to(tl.int64) * chunks * CHUNK + o_k[:, None]) * CHUNK + (i_j * Q + o_q)[None, :]
    tl.store(p_pairs, b_S)


@triton.jit
def kept_x(x, index, mask, o_k, o_p, m_p, i_b, sx_t, steps, L, HAS_INDEX: tl.constexpr, HAS_MASK: tl.constexpr):
    """x (Q, P) of the scan's tokens o_k, zeros where nothing may enter the state."""
    o_t, seen = places(index, o_k, i_b, steps, L, HAS_INDEX)
    if HAS_MASK:
        seen = seen & (tl.load(mask + i_b * L + o_t, mask=seen, other=0) != 0)
    return tl.load(x + o_t[:, None] * sx_t + o_p[None, :], mask=seen[:, None] & m_p[None, :], other=0.0)


@triton.jit(do_not_specialize=["L", "steps", "chunks"])
def ssd_outputs(
    x, C, D, z, index, mask, kept, whole, part, pairs, starts, y,
    sx_b, sx_t, sx_h, sC_b, sC_t, sC_g, sz_b, sz_t, sz_h, sD_h, L, steps, heads, shared, chunks,
    HAS_D: tl.constexpr, D_WIDE: tl.constexpr, HAS_Z: tl.constexpr, HAS_INDEX: tl.constexpr, HAS_MASK: tl.constexpr,
    P: tl.constexpr, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, K: tl.constexpr, Q: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x, z, y (B, tokens, H, P), C (B, L, G, N); the others as the passes before left them.
    A program makes Q tokens of a head, K states a product. Grid: (blocks of Q * heads * blocks of P, B)."""
    blocks: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    i_q, i_b = (tl.program_id(0) // (heads * blocks)).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_h, i_p = (tl.program_id(0) // blocks % heads).to(tl.int64), tl.program_id(0) % blocks
    i_c, i_g = i_q // (CHUNK // Q), i_h // shared
    o_p, o_n, o_q = i_p * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, K), tl.arange(0, Q)
    m_p = o_p < P
    x += i_b * sx_b + i_h * sx_h
    C += i_b * sC_b + i_g * sC_g
    row = (i_b * heads + i_h) * chunks * CHUNK
    kept += row
    whole += row
    part += row
    dtype = x.dtype.element_ty
    first = i_c * CHUNK
    o_k = i_q * Q + o_q
    p_pairs = pairs + ((i_b * (heads // shared) + i_g) * chunks * CHUNK + o_k[:, None]) * CHUNK + o_q[None, :]
    s_whole, s_part = tl.load(whole + o_k), tl.load(part + o_k)

    o_t, m_t = places(index, o_k, i_b, steps, L, HAS_INDEX)

    # What the chunk started at.
    p_C = C + o_t[:, None] * sC_t + o_n[None, :]
    p_starts = starts + ((i_b * chunks + i_c) * heads + i_h) * N * P + o_n[:, None] * P + o_p[None, :]
    b_y = tl.zeros((Q, BLOCK_P), tl.float32)
    for n in range(0, BLOCK_N, K):
        m_n = o_n < N - n
        b_C = tl.load(p_C + n, mask=m_t[:, None] & m_n[None, :], other=0.0).to(dtype)
        b_h = tl.load(p_starts + n * P, mask=m_n[:, None] & m_p[None, :], other=0.0)
        b_y += tl.dot(b_C, b_h, input_precision=PRECISION)
    b_y *= tl.exp2(s_whole + s_part)[:, None]

    # The chunk's blocks before it: from a token to its block's end, and from there to here, both below 0.
    for start in range(0, (i_q * Q - first).to(tl.int32), Q):
        o_j = first + start + o_q
        e_whole, e_part = tl.load(whole + first + start + Q - 1), tl.load(part + first + start + Q - 1)
        b_left = tl.exp2((e_whole - tl.load(whole + o_j)) + (e_part - tl.load(part + o_j))) * tl.load(kept + o_j)
        b_since = tl.exp2((s_whole - e_whole) + (s_part - e_part))
        b_S = tl.load(p_pairs + start) * b_since[:, None] * b_left[None, :]
        b_u = kept_x(x, index, mask, o_j, o_p, m_p, i_b, sx_t, steps, L, HAS_INDEX, HAS_MASK)
        b_y += tl.dot(b_S.to(dtype), b_u, input_precision=PRECISION)

    # The block's own tokens: each pair has its decay, later tokens none.
    b_x = kept_x(x, index, mask, o_k, o_p, m_p, i_b, sx_t, steps, L, HAS_INDEX, HAS_MASK)
    b_S = tl.load(p_pairs + (i_q * Q - first))
    m_past = o_q[:, None] >= o_q[None, :]
    b_gap = (s_whole[:, None] - s_whole[None, :]) + (s_part[:, None] - s_part[None, :])
    b_S *= tl.exp2(tl.where(m_past, b_gap, 0.0)) * tl.load(kept + o_k)[None, :]
    b_S = tl.where(m_past, b_S, 0.0)  # last, so that a later token's NaN stays out
    b_y += tl.dot(b_S.to(dtype), b_x, input_precision=PRECISION)

    m_tp = m_t[:, None] & m_p[None, :]
    if HAS_D:
        b_x = tl.load(x + o_t[:, None] * sx_t + o_p[None, :], mask=m_tp, other=0.0)  # masked tokens, too
        if D_WIDE:
            b_y += b_x.to(tl.float32) * tl.load(D + i_h * sD_h + o_p, mask=m_p, other=0.0).to(tl.float32)[None, :]
        else:
            b_y += b_x.to(tl.float32) * tl.load(D + i_h * sD_h).to(tl.float32)
    if HAS_Z:
        p_z = z + i_b * sz_b + o_t[:, None] * sz_t + i_h * sz_h + o_p[None, :]
        b_y *= silu(tl.load(p_z, mask=m_tp, other=0.0).to(tl.float32))
    if HAS_INDEX:
        b_y = tl.where(m_t[:, None], b_y, 0.0)
    p_y = y + ((i_b * steps + o_k[:, None]) * heads + i_h) * P + o_p[None, :]
    tl.store(p_y, b_y.to(y.dtype.element_ty), mask=(o_k < steps)[:, None] & m_p[None, :])


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
    b_kept = head_delta(
        b_delta, i_h, i_b * sg_b, bias, threshold, scale, low, high,
        HAS_BIAS, SOFTPLUS, LIMITED, HAS_THRESHOLD, HAS_SCALE,
    )  # fmt: skip
    b_x = tl.load(x + i_b * sx_b + i_h * sx_h + o_p, mask=m_p, other=0.0).to(tl.float32)
    b_B = tl.load(B + i_b * sB_b + i_g * sB_g + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_C = tl.load(C + i_b * sC_b + i_g * sC_g + o_n, mask=m_n, other=0.0).to(tl.float32)
    p_state = state + ((i_b * heads + i_h) * P + o_p[:, None]) * N + o_n[None, :]
    b_h = tl.load(p_state, mask=m_pn, other=0.0)
    b_h = tl.exp2(b_kept * tl.load(A + i_h).to(tl.float32) * LOG2E) * b_h + (b_kept * b_x)[:, None] * b_B[None, :]
    if N < BLOCK_N:
        b_h = tl.where(m_n[None, :], b_h, 0.0)  # beside the states infinity times 0 is NaN
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
