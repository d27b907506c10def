"""Causal depthwise convolution and silu on a GPU: a thread slides a window of W inputs along time, or moves it on
by one token in place."""

from __future__ import annotations

import triton
import triton.language as tl

from ..shared.triton_math import silu
from ..shared.triton_tiles import load, pack


@triton.jit(do_not_specialize=["L"])  # one binary for every length
def conv_silu(
    x, weight, bias, before, mask, y, last, sx_b, sx_t, L, channels,
    HAS_BIAS: tl.constexpr, HAS_BEFORE: tl.constexpr, HAS_MASK: tl.constexpr, EVEN: tl.constexpr, W: tl.constexpr,
    CH: tl.constexpr, BLOCK_T: tl.constexpr, UNROLL: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """x: any row and time strides, channels side by side, CH divides them. Contiguous: weight (D, W), before and last
    (B, D, W-1), mask (B, L), y (B, L, D). EVEN: the channels fill whole programs."""
    # Tokens go along the grid's first axis: the others end at 65535.
    i_t, i_d, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    o_d = (i_d * LANES + tl.arange(0, LANES)[:, None, None]) * CH + tl.arange(0, CH)[None, None, :]
    m_d = o_d < channels
    begin = (i_t * BLOCK_T).to(tl.int32)
    sx_t, sy_t = tl.cast(sx_t, tl.int64), tl.cast(channels, tl.int64)  # 1 comes as a constant, which has no .to
    p_x = x + i_b * sx_b + begin * sx_t + o_d
    p_y = y + (i_b * L + begin) * sy_t + o_d
    if HAS_MASK:
        mask += i_b * L
    weights = ()
    for k in tl.static_range(W):
        weights = weights + load(weight + o_d * W + k, m_d, not EVEN)
    if HAS_BIAS:
        b_bias = load(bias + o_d, m_d, not EVEN)

    window = ()  # the W-1 inputs before the next one, oldest first, CH channels each
    for k in tl.static_range(W - 1):
        t = begin - (W - 1) + k
        inside = o_d * 0 + t >= 0  # a tile, as the interpreter mistypes a tile and a scalar condition
        row = load(p_x + (k - (W - 1)) * sx_t, m_d & inside, True)
        if HAS_MASK:
            seen = tl.load(mask + t, mask=t >= 0, other=0) != 0
        if HAS_BEFORE:
            early = load(before + (i_b * channels + o_d) * (W - 1) + (t + W - 1), m_d & (o_d * 0 + t < 0), True)
        for c in tl.static_range(CH):
            b_x = row[c]
            if HAS_MASK:
                b_x = tl.where(seen, b_x, 0.0)
            if HAS_BEFORE:
                b_x += early[c]
            window = window + (b_x,)

    stop = tl.minimum(begin + BLOCK_T, L)
    for STEPS in tl.static_range(UNROLL, 0, -max(UNROLL - 1, 1)):  # blocks of UNROLL steps, then the rest one by one
        end = stop - (stop - begin) % STEPS
        for t in range(begin, end, STEPS):
            for u in tl.static_range(STEPS):
                row = load(p_x + u * sx_t, m_d, not EVEN)
                if HAS_MASK:
                    seen = tl.load(mask + t + u) != 0
                for c in tl.static_range(CH):
                    b_x = row[c]
                    if HAS_MASK:
                        b_x = tl.where(seen, b_x, 0.0)
                    window = window + (b_x,)
            ys = ()
            for u in tl.static_range(STEPS):
                for c in tl.static_range(CH):
                    b_y = window[u * CH + c] * weights[c]
                    if HAS_BIAS:
                        b_y = window[u * CH + c] * weights[c] + b_bias[c]
                    for k in tl.static_range(1, W):
                        b_y = window[(u + k) * CH + c] * weights[k * CH + c] + b_y
                    ys = ys + (silu(b_y),)
            window = window[STEPS * CH :]
            for u in tl.static_range(STEPS):
                b_y = pack(ys[u * CH : (u + 1) * CH]).to(y.dtype.element_ty)
                if EVEN:
                    tl.store(p_y + u * sy_t, b_y)
                else:
                    tl.store(p_y + u * sy_t, b_y, mask=m_d)
            p_x += STEPS * sx_t
            p_y += STEPS * sy_t
        begin = end
    if stop == L:
        for k in tl.static_range(W - 1):
            b_last = pack(window[k * CH : (k + 1) * CH]).to(last.dtype.element_ty)
            tl.store(last + (i_b * channels + o_d) * (W - 1) + k, b_last, mask=m_d)


@triton.jit
def conv_step(
    state, x, weight, bias, y, ss_b, ss_d, ss_w, sx_b, channels,
    HAS_BIAS: tl.constexpr, W: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One token: state (B, D, W-1), any strides, in place, rounded to x's dtype as it is read; x rows of D, sx_b apart.
    Contiguous: weight (D, W), y (B, D). A thread owns its channel's window. Grid: (blocks of D, B)."""
    i_b = tl.program_id(1).to(tl.int64)
    o_d = tl.program_id(0).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < channels
    p_state = state + i_b * ss_b + o_d * ss_d
    window = ()
    for k in tl.static_range(W - 1):
        window = window + (tl.load(p_state + k * ss_w, mask=m_d, other=0.0).to(x.dtype.element_ty),)
    window = window + (tl.load(x + i_b * sx_b + o_d, mask=m_d, other=0.0),)
    b_y = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        b_y += tl.load(bias + o_d, mask=m_d, other=0.0).to(tl.float32)
    for k in tl.static_range(W):
        b_y += window[k].to(tl.float32) * tl.load(weight + o_d * W + k, mask=m_d, other=0.0).to(tl.float32)
    for k in tl.static_range(W - 1):
        tl.store(p_state + k * ss_w, window[k + 1].to(state.dtype.element_ty), mask=m_d)
    tl.store(y + i_b * channels + o_d, silu(b_y).to(y.dtype.element_ty), mask=m_d)
