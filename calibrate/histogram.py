"""Counting delta: one pass over a layer's values, in torch anywhere and in Triton on a GPU, to the same integers."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 512
UNIT = 2.0**36  # fixed point of masses: 2^-36, good for 2^27 units of delta


def bin_of(bits: Tensor, high: Tensor, shift: Tensor) -> Tensor:
    """Bin of each value: bits (D, T) int32 -> (D, T) int64, 0 for the bin of the largest value.

    high, shift: (D,) int32, bits of the channel's largest value, and how many of them its grid drops.
    """
    shift = shift[:, None]
    return ((high[:, None] >> shift) - (bits >> shift)).clamp(0, BINS - 1).long()


def add_histogram(
    columns: Tensor, high: Tensor, shift: Tensor, counts: Tensor, mass: Tensor, backend: str = "auto"
) -> None:
    """Add columns (D, T) float32 >= 0 to counts (D, BINS) int32 and to mass (D,) int64 (units of 1 / UNIT), in place.

    backend: "torch", "triton", or "auto" (Triton where the values are on a GPU). Both give the same bits.
    """
    if backend == "triton" or (backend == "auto" and columns.is_cuda):
        from ..kernels.triton_sketch import add_counts

        add_counts(columns, high, shift, counts, mass, UNIT)
        return
    bins = bin_of(columns.view(torch.int32), high, shift)
    counts.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.int32))
    mass += (columns.double() * UNIT).round().long().sum(1)
