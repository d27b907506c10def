"""Histograms of delta on a GPU: one read of the values, integers out. A program owns one channel."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

SKETCH_CONFIG = {"BLOCK_T": 1024, "num_warps": 4}
_ROUND = tl.constexpr(1.5 * 2.0**52)  # adding and taking it away rounds a double to a whole number, ties to even


@triton.jit
def sketch(columns, top, shift, counts, mass, L, UNIT: tl.constexpr, BINS: tl.constexpr, BLOCK_T: tl.constexpr):
    """Contiguous: columns (D, L), top, shift and mass (D,), counts (D, BINS); the last two are added to."""
    i_d = tl.program_id(0).to(tl.int64)
    b_shift = tl.load(shift + i_d)
    b_top = tl.load(top + i_d) >> b_shift
    o_t, o_n = tl.arange(0, BLOCK_T), tl.arange(0, BINS)
    columns += i_d * L
    b_counts = tl.zeros([BINS], dtype=tl.int32)
    b_mass = tl.zeros([BLOCK_T], dtype=tl.int64)
    for t in range(0, L, BLOCK_T):
        m_t = t + o_t < L
        b_delta = tl.load(columns + t + o_t, mask=m_t, other=0.0)
        b_bin = b_top - (b_delta.to(tl.int32, bitcast=True) >> b_shift)
        b_bin = tl.where(m_t, tl.minimum(tl.maximum(b_bin, 0), BINS - 1), 0)
        b_counts += tl.histogram(b_bin, BINS)
        b_mass += (b_delta.to(tl.float64) * UNIT + _ROUND - _ROUND).to(tl.int64)
    past = tl.cdiv(L, BLOCK_T) * BLOCK_T - L  # what lies past the end was counted in bin 0
    b_counts -= tl.where(o_n == 0, past, 0)
    p_counts = counts + i_d * BINS + o_n
    tl.store(p_counts, tl.load(p_counts) + b_counts)
    tl.store(mass + i_d, tl.load(mass + i_d) + tl.sum(b_mass))


def add_counts(columns: Tensor, high: Tensor, shift: Tensor, counts: Tensor, mass: Tensor, unit: float) -> None:
    """Add columns (D, L) float32, 0 <= value < 2^51 / unit, to counts (D, BINS) int32 and mass (D,) int64, in place.

    All contiguous; high, shift (D,) int32: a value's bin is (high >> shift) - (its bits >> shift), clamped. mass is in
    units of 1 / unit, each value rounded to a whole number of them, ties to even.
    """
    D, L = columns.shape
    sketch[(D,)](columns, high, shift, counts, mass, L, UNIT=unit, BINS=counts.shape[1], **SKETCH_CONFIG)
