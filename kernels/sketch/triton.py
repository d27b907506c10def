"""Histograms of delta on a GPU: one read of the values, integers out. A program owns one channel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SKETCH_CONFIG = {"BLOCK_T": 1024, "num_warps": 8}
_ROUND = tl.constexpr(1.5 * 2.0**52)  # adding and taking it away rounds a double to a whole number, ties to even


@triton.jit(do_not_specialize=["L"])  # one binary for every length
def sketch(
    columns, top, shift, counts, mass, L,
    UNIT: tl.constexpr, HEAD: tl.constexpr, SEGMENTS: tl.constexpr, ROOM: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Contiguous: columns (D, L), top, shift and mass (D,), counts (D, BINS); the last two are written.

    Segment s of the grid has 2^HEAD bins of 2^s steps and begins (2^s - 1) 2^HEAD steps below the top. Counted from
    2^HEAD steps above the top it is an octave, so the head of a float32, exponent and HEAD bits, is the bin.
    ROOM: the least power of 2 that holds BINS = SEGMENTS 2^HEAD.
    """
    BINS: tl.constexpr = SEGMENTS << HEAD
    STEPS: tl.constexpr = ((1 << SEGMENTS) - 1) << HEAD
    i_d = tl.program_id(0).to(tl.int64)
    b_shift = tl.load(shift + i_d)
    b_top = tl.load(top + i_d)
    o_t, o_n = tl.arange(0, BLOCK_T), tl.arange(0, ROOM)
    columns += i_d * L
    b_counts = tl.zeros([ROOM], dtype=tl.int32)
    b_mass = tl.zeros([BLOCK_T], dtype=tl.int64)
    for t in range(0, L, BLOCK_T):
        m_t = t + o_t < L
        b_delta = tl.load(columns + t + o_t, mask=m_t, other=0.0)
        b_down = b_top - (b_delta.to(tl.int32, bitcast=True) >> b_shift)
        b_down = tl.minimum(tl.maximum(b_down, 1), STEPS) + ((1 << HEAD) - 1)
        b_bin = (b_down.to(tl.float32).to(tl.int32, bitcast=True) >> (23 - HEAD)) - ((127 + HEAD) << HEAD)
        b_counts += tl.histogram(tl.where(m_t, b_bin, 0), ROOM)
        b_mass += (b_delta.to(tl.float64) * UNIT + _ROUND - _ROUND).to(tl.int64)
    past = tl.cdiv(L, BLOCK_T) * BLOCK_T - L  # what lies past the end was counted in bin 0
    tl.store(counts + i_d * BINS + o_n, b_counts - tl.where(o_n == 0, past, 0), mask=o_n < BINS)
    tl.store(mass + i_d, tl.sum(b_mass))


def histogram_triton(
    columns: Tensor, top: Tensor, shift: Tensor, head: int, segments: int, unit: float
) -> tuple[Tensor, Tensor]:
    """Columns (D, L) float32, 0 <= value < 2^51 / unit -> counts (D, segments * 2^head) int32, mass (D,) int64.

    All contiguous; top, shift (D,) int32: a value lies top - (its bits >> shift) steps down, clamped to
    the grid. mass is in units of 1 / unit, each value rounded to a whole number of them, ties to even.
    """
    D, L = columns.shape
    counts = torch.empty(D, segments << head, dtype=torch.int32, device=columns.device)
    mass = torch.empty(D, dtype=torch.int64, device=columns.device)
    grid = {"HEAD": head, "SEGMENTS": segments, "ROOM": triton.next_power_of_2(segments << head)}
    sketch[(D,)](columns, top, shift, counts, mass, L, UNIT=unit, **grid, **SKETCH_CONFIG)
    return counts, mass
