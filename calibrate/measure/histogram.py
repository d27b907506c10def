"""Counting delta on a log-spaced grid that is finest at its top, in torch anywhere and in Triton on a GPU alike.

A grid counts in steps of the float32 bits: `bits >> shift` splits every octave evenly, needs no logarithm, and makes
coarser grids unions of finer ones. Below its top come 64 bins of one step, 64 of two, and so on to 64 of 64 steps: an
error in g is held against the mass above it, which grows downwards, and so may the bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEAD = 6
SEGMENT = 1 << HEAD  # bins of one width
SEGMENTS = 7
BINS = SEGMENT * SEGMENTS
STEPS = SEGMENT * (2**SEGMENTS - 1)  # that a grid spans
COARSEST = 14  # bits dropped at most: 512 steps an octave, 15 octaves
UNIT = 2.0**36  # fixed point of masses: 2^-36, good for 2^27 units of delta


def grid_top(high: Tensor, shift: Tensor) -> Tensor:
    """The step just above the grid: a multiple of the widest bin, so that all nest. high: bits of the largest value."""
    return ((high >> (shift + SEGMENTS - 1)) + 1) << (SEGMENTS - 1)


def grid_shift(high: Tensor, low: Tensor) -> Tensor:
    """Bits each channel's grid drops, (D,) int32: the fewest with which it spans the bits low ... high (D,)."""
    shift = torch.full_like(high, COARSEST)
    for s in range(COARSEST - 1, -1, -1):
        finer = torch.full_like(high, s)
        shift = torch.where(grid_top(high, finer) - (low >> s) <= STEPS, finer, shift)
    return shift


def bin_of(bits: Tensor, top: Tensor, shift: Tensor) -> Tensor:
    """Bin of each value: bits (D, T) int32 -> (D, T) int64, 0 at the top; top, shift (D,) int32.

    What lies above the grid counts in its first bin, what lies below in its last. Counted from SEGMENT steps above the
    top, segment k is the octave 2^k SEGMENT ... 2^(k + 1) SEGMENT: the head of a float32 is the bin.
    """
    down = (top[:, None] - (bits >> shift[:, None])).clamp_(1, STEPS).add_(SEGMENT - 1)
    return (down.float().view(torch.int32) >> (23 - HEAD)).sub_((127 + HEAD) << HEAD).long()


def edge_bits(top: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Bits of the smallest and of the largest value every bin takes, (D, BINS) int32 each."""
    place = torch.arange(BINS, dtype=torch.int32, device=top.device)
    segment, inside = place // SEGMENT, place % SEGMENT
    above = top[:, None] - SEGMENT * ((1 << segment) - 1) - (inside << segment)
    lower, above = ((step.clamp(min=0) << shift[:, None]) for step in (above - (1 << segment), above))
    return lower, (above - 1).clamp(min=0)


def histogram(columns: Tensor, top: Tensor, shift: Tensor, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Columns (D, T) float32 >= 0, contiguous -> counts (D, BINS) int32 and mass (D,) int64, in units of 1 / UNIT.

    backend: "torch", "triton", or "auto" (Triton where the values are on a GPU). Both give the same bits.
    """
    if backend == "triton" or (backend == "auto" and columns.is_cuda):
        from ...kernels.shared.dispatch import on_device
        from ...kernels.sketch import triton as sketch

        return on_device(sketch, columns.device).histogram_triton(columns, top, shift, HEAD, SEGMENTS, UNIT)
    bins = bin_of(columns.view(torch.int32), top, shift)
    counts = torch.zeros(len(columns), BINS, dtype=torch.int32, device=columns.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.int32))
    return counts, (columns.double() * UNIT).round().long().sum(1)
