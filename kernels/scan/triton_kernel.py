"""The selective scan on a GPU: a thread keeps the states of its channels in registers and walks through time.

    pass 1  scan(STATE_ONLY)   every chunk but the last from a zero state -> its last state and its sum of delta
    pass 2  carry              h_{c+1} = exp(A sum delta_c) h_c + last_c, over the chunks in order
    pass 3  scan               every chunk, now from its true initial state -> y

With one chunk only pass 3 runs. A program is one warp: LANES / SPLIT groups of SPLIT threads, CH channels a group, and
NS = N / SPLIT states of each channel a thread. The loop takes one step at a time and leaves it to the other warps to
hide the way to memory: steps read ahead are loads that ptxas moves back to their use, on registers that cost a warp.
B and C, the same for all channels, come side by side in float32, in 16-byte loads that every thread makes: converting
them here would cost an instruction a value and thread. Offsets are int64: t times a stride passes 2^31 at 61k tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.triton_math import LOG2E, silu, softplus
from ..shared.triton_tiles import load, load_run, pack


@triton.jit
def advance(h, A, kept, driven, B, C, STATE_ONLY: tl.constexpr):
    """One step of one channel: h_n = 2^(kept A_n) h_n + driven B_n -> (new h, y = sum_n h_n C_n)."""
    states = ()
    y = kept
    for n in tl.static_range(len(A)):
        s = tl.exp2(kept * A[n]) * h[n] + driven * B[n]
        states = states + (s,)
        if not STATE_ONLY:
            if n == 0:
                y = s * C[n]
            else:
                y = s * C[n] + y
    return states, y


@triton.jit(do_not_specialize=["L", "steps", "chunks", "chunk_size"])  # one binary for every length
def scan(
    x, delta, A, BC, D, z, bias, threshold, scale, index, mask, initial, y, last, delta_sum,
    sx_b, sx_t, sd_b, sd_t, sz_b, sz_t, sg_b,
    L, steps, channels, chunks, chunk_size,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    HAS_THRESHOLD: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_INDEX: tl.constexpr, HAS_MASK: tl.constexpr,
    HAS_INITIAL: tl.constexpr, STATE_ONLY: tl.constexpr, EVEN: tl.constexpr, N: tl.constexpr,
    CH: tl.constexpr, SPLIT: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """x, delta, z: any row and time strides, channels side by side. Contiguous: A (D, N) and BC (B, L, 2N) float32,
    index (B, steps), mask (B, L), y (B, steps, D), initial (B, chunks, D, N), delta_sum (B, chunks, D); last as initial
    if STATE_ONLY, else (B, D, N). threshold, scale: rows of D, sg_b elements apart (0 where the batch shares one).
    N is a power of two, CH divides D. EVEN: the channels fill whole programs."""
    R: tl.constexpr = LANES // SPLIT
    NS: tl.constexpr = N // SPLIT
    VS: tl.constexpr = 4 if NS > 4 else NS  # float32 states in one load
    i_d = tl.program_id(0).to(tl.int64)
    i_c = tl.program_id(1).to(tl.int64)
    i_b = tl.program_id(2).to(tl.int64)
    # Tiles (group, thread of the group, value); * 0 spreads an offset over the group.
    o_r = tl.arange(0, R)[:, None, None]
    o_s = tl.arange(0, SPLIT)[None, :, None]
    o_d = (i_d * R + o_r) * CH + o_s * 0 + tl.arange(0, CH)[None, None, :]
    o_n = o_r * 0 + o_s * NS + tl.arange(0, VS)[None, None, :]
    m_d = o_d < channels
    o_g = o_r * 0 + o_s * 0
    m_g = (i_d * R + o_r) * CH + o_g < channels  # CH divides channels: a group is inside or outside
    p_state = (i_d * R + o_r) * CH * N + o_n
    o_state = (i_b * chunks + i_c) * channels * N

    b_A, h, sums = (), (), ()
    for c in tl.static_range(CH):
        row = load_run(A + p_state + c * N, m_g, NS, not EVEN)
        for n in tl.static_range(NS):
            b_A = b_A + (row[n] * LOG2E,)
        if HAS_INITIAL:
            h = h + load_run(initial + o_state + p_state + c * N, m_g, NS, not EVEN)
        else:
            for _ in tl.static_range(NS):
                h = h + (tl.zeros([R, SPLIT], dtype=tl.float32),)
        sums = sums + (tl.zeros([R, SPLIT], dtype=tl.float32),)
    if HAS_BIAS:
        b_bias = load(bias + o_d, m_d, not EVEN)
    if HAS_THRESHOLD:
        b_threshold = load(threshold + i_b * sg_b + o_d, m_d, not EVEN)
        spoilt = ()  # a threshold that is NaN makes its channel NaN
        for c in tl.static_range(CH):
            for n in tl.static_range(NS):
                spoilt = spoilt + (tl.where(b_threshold[c] == b_threshold[c], b_A[c * NS + n], float("nan")),)
        b_A = spoilt
    if HAS_SCALE:
        b_scale = load(scale + i_b * sg_b + o_d, m_d, not EVEN)
    if HAS_D:
        b_D = load(D + o_d, m_d, not EVEN)

    # Without an index the pointers walk along with time, which spares the loop its address arithmetic.
    begin = (i_c * chunk_size).to(tl.int32)
    i_t = i_c * 0 if HAS_INDEX else i_c * chunk_size
    # tl.cast: an integer argument of 1 comes as a constant, which has no .to
    sx_t, sd_t, sz_t = tl.cast(sx_t, tl.int64), tl.cast(sd_t, tl.int64), tl.cast(sz_t, tl.int64)
    sy_t = tl.cast(channels, tl.int64)
    p_x = x + i_b * sx_b + i_t * sx_t + o_d
    p_delta = delta + i_b * sd_b + i_t * sd_t + o_d
    p_BC = BC + (i_b * L + i_t) * 2 * N + o_n
    p_y = y + (i_b * steps + i_c * chunk_size) * sy_t + o_d
    if HAS_Z:
        p_z = z + i_b * sz_b + i_t * sz_t + o_d
    if HAS_INDEX:
        index += i_b * steps
    if HAS_MASK:
        mask += i_b * L + i_t
    for k in range(begin, tl.minimum(begin + chunk_size, steps)):
        t = 0
        m_B = m_g
        if HAS_INDEX:
            t = tl.load(index + k)
            present = (t >= 0) & (t < L)  # nothing outside is read, even before the check has spoken
            seen = present
            t = tl.where(present, t, 0)
        if HAS_MASK:
            seen = tl.load(mask + t) != 0
            if HAS_INDEX:
                seen = seen & present
        if HAS_MASK or HAS_INDEX:
            m_B = m_g & (o_g >= tl.where(seen, 0, 1))  # a tile, as in conv/triton_kernel
        xs = load(p_x + t * sx_t, m_d, not EVEN)
        deltas = load(p_delta + t * sd_t, m_d, not EVEN)
        b_B = load_run(p_BC + t * (2 * N), m_B, NS, HAS_MASK or HAS_INDEX)
        b_C = b_B
        if not STATE_ONLY:
            b_C = load_run(p_BC + t * (2 * N) + N, m_g, NS, False)
            if HAS_Z:
                zs = load(p_z + t * sz_t, m_d, not EVEN)
        states, totals, ys = (), (), ()
        for c in tl.static_range(CH):
            b_x, b_delta = xs[c], deltas[c]
            if HAS_BIAS:
                b_delta += b_bias[c]
            if SOFTPLUS:
                b_delta = softplus(b_delta)
            kept = b_delta
            if HAS_SCALE:
                kept = b_delta * b_scale[c]
            if HAS_THRESHOLD:
                kept = tl.where(b_delta <= b_threshold[c], 0.0, kept)  # so that NaN is not dropped
            driven = kept * b_x
            if HAS_MASK or HAS_INDEX:
                kept = tl.where(seen, kept, 0.0)
                driven = tl.where(seen, driven, 0.0)
            out, b_y = advance(
                h[c * NS : (c + 1) * NS], b_A[c * NS : (c + 1) * NS], kept, driven, b_B, b_C, STATE_ONLY
            )  # fmt: skip
            states = states + out
            if STATE_ONLY:
                totals = totals + (sums[c] + kept,)
            else:
                if SPLIT > 1:
                    b_y = tl.broadcast_to(tl.sum(b_y, axis=1, keep_dims=True), b_y.shape)
                if HAS_D:
                    b_y = b_x * b_D[c] + b_y
                if HAS_Z:
                    b_y = b_y * silu(zs[c])
                if HAS_INDEX:
                    b_y = tl.where(present, b_y, 0.0)
                ys = ys + (b_y,)
        h = states
        if STATE_ONLY:
            sums = totals
        else:
            b_y = pack(ys).to(y.dtype.element_ty)
            if EVEN and SPLIT == 1:
                tl.store(p_y, b_y)
            else:
                tl.store(p_y, b_y, mask=m_d & (o_s == 0))
            p_y += sy_t
        if not HAS_INDEX:
            p_x += sx_t
            p_delta += sd_t
            p_BC += 2 * N
            if HAS_Z:
                p_z += sz_t
            if HAS_MASK:
                mask += 1

    if STATE_ONLY:
        p_sum = delta_sum + (i_b * chunks + i_c) * channels + o_d
        tl.store(p_sum, pack(sums), mask=m_d & (o_s == 0))
    else:
        o_state = i_b * channels * N
    if STATE_ONLY or i_c == chunks - 1:
        p_last = last + o_state + p_state
        for c in tl.static_range(CH):
            for j in tl.static_range(NS // VS):
                tl.store(p_last + c * N + j * VS, pack(h[c * NS + j * VS : c * NS + (j + 1) * VS]), mask=m_g)


@triton.jit(do_not_specialize=["chunks"])
def carry(
    A, initial, states, delta_sum, channels, chunks,
    HAS_INITIAL: tl.constexpr, N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """states (B, chunks, D, N): each chunk's last state from zero (the last's is not read) -> its initial state."""
    i_d, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < channels
    o_dn, m_dn = o_d[:, None] * N + tl.arange(0, N)[None, :], m_d[:, None]
    b_A = tl.load(A + o_dn, mask=m_dn, other=0.0).to(tl.float32) * LOG2E
    b_h = tl.zeros([BLOCK_D, N], dtype=tl.float32)
    if HAS_INITIAL:
        b_h += tl.load(initial + i_b * channels * N + o_dn, mask=m_dn, other=0.0).to(tl.float32)
    for c in range(0, chunks - 1):
        at = i_b * chunks + c
        p_state = states + at * channels * N + o_dn
        b_last = tl.load(p_state, mask=m_dn, other=0.0)
        b_sum = tl.load(delta_sum + at * channels + o_d, mask=m_d, other=0.0)
        tl.store(p_state, b_h, mask=m_dn)
        b_h = tl.exp2(b_sum[:, None] * b_A) * b_h + b_last
    tl.store(states + (i_b * chunks + chunks - 1) * channels * N + o_dn, b_h, mask=m_dn)
