"""Mergeable sketches of delta: per channel, a log-spaced histogram of counts and of sums.

Everything is an integer (sums in fixed point), so adding windows, batches or processes in any order gives the same
bits. With bins of 2^(1/32) the mass above any threshold is known to a fraction of one bin's mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PER_OCTAVE = 32
LOWEST, HIGHEST = -18, 6  # delta from 2^-18 to 2^6; smaller and larger values fall into the end bins
BINS = (HIGHEST - LOWEST) * PER_OCTAVE
_UNIT = 2.0**30  # fixed point of the sums: 2^-30, good for 2^33 units of delta a bin


@dataclass
class DeltaSketch:
    """Histogram of one layer's delta (after bias and softplus). counts, sums: (D, BINS) int64."""

    counts: Tensor
    sums: Tensor

    @staticmethod
    def empty(channels: int, device: torch.device | str = "cpu") -> DeltaSketch:
        zeros = torch.zeros(channels, BINS, dtype=torch.int64, device=device)
        return DeltaSketch(zeros, zeros.clone())

    def add(self, delta: Tensor) -> None:
        """Count delta (T, D) float32 > 0 in place."""
        D = delta.shape[1]
        bins = ((torch.log2(delta) - LOWEST) * PER_OCTAVE).floor().clamp_(0, BINS - 1).long()
        flat = (bins + torch.arange(D, device=delta.device) * BINS).reshape(-1)
        units = (delta.double() * _UNIT).round().long().reshape(-1)
        self.counts.view(-1).scatter_add_(0, flat, torch.ones_like(flat))
        self.sums.view(-1).scatter_add_(0, flat, units)

    def merge(self, other: DeltaSketch) -> None:
        """Add another sketch in place; commutative and associative to the bit."""
        self.counts += other.counts
        self.sums += other.sums

    def mean(self) -> Tensor:
        """Mean delta of each channel, (D,) float64."""
        return self.sums.sum(1).double() / _UNIT / self.counts.sum(1).clamp(min=1)

    def threshold(self, share: Tensor | float) -> Tensor:
        """g (D,) float64 such that delta > g carries a share of the mass: E[delta; delta > g] = share E[delta].

        Within a bin the mass is taken as spread evenly between the bin's edges in log delta. share >= 1 gives 0.
        """
        mass = self.sums.double()
        wanted = torch.as_tensor(share, dtype=torch.float64, device=mass.device).expand(mass.shape[0]) * mass.sum(1)
        above = mass.flip(1).cumsum(1).flip(1)  # mass in this bin and all higher ones
        # The bin that holds g: the highest whose mass from there up reaches the wanted mass.
        reaches = above >= wanted[:, None]
        place = (reaches.sum(1) - 1).clamp(min=0)
        row = torch.arange(mass.shape[0], device=mass.device)
        inside = mass[row, place].clamp(min=1)
        part = ((above[row, place] - wanted) / inside).clamp(0, 1)  # share of the bin that lies below g
        g = torch.exp2(LOWEST + (place + part) / PER_OCTAVE)
        return torch.where(wanted >= mass.sum(1), 0.0, g)

    def kept_share(self, g: Tensor) -> Tensor:
        """Share of each channel's mass carried by delta > g, (D,) float64; g (D,)."""
        mass = self.sums.double()
        position = (torch.log2(g.double().clamp(min=2.0**LOWEST)) - LOWEST) * PER_OCTAVE
        place = position.floor().clamp(0, BINS - 1).long()
        above = mass.flip(1).cumsum(1).flip(1)
        row = torch.arange(mass.shape[0], device=mass.device)
        kept = above[row, place] - mass[row, place] * (position - place).clamp(0, 1)
        return torch.where(g <= 0, 1.0, kept / mass.sum(1).clamp(min=1))
