"""Mergeable sketches of delta: per channel, the largest values as they are and a histogram of all the rest.

Everything kept is a function of the multiset of values seen, so windows, batches or processes may be added in any order
and give the same bits. A value's bin is the head of its float32 bits: `bits >> shift` splits every octave evenly into
2^(23 - shift) bins, needs no logarithm, and makes coarser grids unions of finer ones. Each channel has the finest grid
whose BINS bins span the values it has seen, at least 32 bins an octave; what lies 16 octaves below the largest value
falls into the lowest bin. Sums follow from the counts to half a bin; the total is kept exactly.

A small share of the mass is a matter of few tokens, often with gaps and ties between them that no histogram resolves:
hence the largest values themselves (`largest`), as many as memory allows: with them g(S) keeps, in every channel, what
the exact g keeps to 1% or one token's mass (tests/calibrate/test_sketch.py). Masses are integers, so that sums have the
same bits in any order and on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .histogram import BINS, UNIT, add_histogram, bin_of

_COARSEST = 18  # bits dropped at most: 32 bins an octave, 16 octaves
_VALUES = 192_000_000  # exact values kept in a whole model: 768 MB
_MOST_VALUES = 16_384  # a channel; merging sorts them
_NO_VALUE = torch.iinfo(torch.int32).max


def exact_values(channels: int, tokens: int) -> int:
    """How many of the largest values each channel keeps, for a model of so many channels in all its layers."""
    return max(1, min(tokens, _MOST_VALUES, _VALUES // channels))


@dataclass
class DeltaSketch:
    """One layer's delta (after bias and softplus).

    largest: (D, K) float32, the K largest values of each channel, descending, zeros while fewer were seen
    counts: (D, BINS) int32, tokens by bin, the highest bin first
    high, low: (D,) int32, bits of the largest and the smallest value: they fix each channel's grid
    mass: (D,) int64, the sum of delta in units of 2^-36 (overflows past 2^27: a thousand times any text here)
    seen: tokens
    """

    largest: Tensor
    counts: Tensor
    high: Tensor
    low: Tensor
    mass: Tensor
    seen: int = 0

    @staticmethod
    def empty(channels: int, values: int, device: torch.device | str = "cpu") -> DeltaSketch:
        """No tokens yet. values: K."""
        return DeltaSketch(
            torch.zeros(channels, values, device=device),
            torch.zeros(channels, BINS, dtype=torch.int32, device=device),
            torch.zeros(channels, dtype=torch.int32, device=device),
            torch.full((channels,), _NO_VALUE, dtype=torch.int32, device=device),
            torch.zeros(channels, dtype=torch.int64, device=device),
        )

    @staticmethod
    def of(tensors: Sequence[Tensor], seen: int) -> DeltaSketch:
        """A sketch from its `tensors()`."""
        largest, counts, high, low, mass = tensors
        return DeltaSketch(largest, counts, high, low, mass, seen)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What to store or send, with `seen`."""
        return self.largest, self.counts, self.high, self.low, self.mass

    def add(self, delta: Tensor) -> None:
        """Count delta (T, D) float32 >= 0 in place."""
        columns = delta.T.contiguous()
        bits = columns.view(torch.int32)
        self._span(bits.amax(1), bits.amin(1))
        add_histogram(columns, self.high, self._shift(), self.counts, self.mass)
        self._keep_largest(columns)
        self.seen += delta.shape[0]

    def merge(self, other: DeltaSketch) -> None:
        """Add another sketch of the same K in place; commutative and associative to the bit."""
        self._span(other.high, other.low)
        theirs = DeltaSketch(other.largest, other.counts.clone(), other.high, other.low, other.mass)
        theirs._span(self.high, self.low)
        self.counts += theirs.counts
        self.mass += other.mass
        self._keep_largest(other.largest)
        self.seen += other.seen

    def _keep_largest(self, values: Tensor) -> None:
        self.largest = torch.cat([self.largest, values], 1).topk(self.largest.shape[1], dim=1).values

    # -- the grid ----------------------------------------------------------------------------------------------

    def _shift(self) -> Tensor:
        """Bits each channel's grid drops, (D,) int32: the fewest with which BINS bins span low ... high."""
        shift = torch.full_like(self.high, _COARSEST)
        for s in range(_COARSEST - 1, -1, -1):
            shift = torch.where((self.high >> s) - (self.low >> s) < BINS, s, shift)
        return shift

    def _bins(self, bits: Tensor) -> Tensor:
        return bin_of(bits, self.high, self._shift())

    def _span(self, high: Tensor, low: Tensor) -> None:
        """Widen the grids to include the bits high and low (D,), moving the counts to their new bins."""
        old_high, old_low, old_shift = self.high, self.low, self._shift()
        self.high, self.low = torch.maximum(old_high, high), torch.minimum(old_low, low)
        if torch.equal(self.high, old_high) and torch.equal(self.low, old_low):
            return
        place = torch.arange(BINS, dtype=torch.int32, device=high.device)
        bits = ((old_high >> old_shift)[:, None] - place) << old_shift[:, None]
        self.counts = torch.zeros_like(self.counts).scatter_add_(1, self._bins(bits), self.counts)

    def _edges(self) -> tuple[Tensor, Tensor]:
        """Lower and upper edge of every bin, (D, BINS) float64 each."""
        shift = self._shift()[:, None]
        block = (self.high[:, None] >> shift) - torch.arange(BINS, dtype=torch.int32, device=shift.device)
        lower, upper = (((block + step).clamp(min=0) << shift).view(torch.float32).double() for step in (0, 1))
        return lower, upper

    # -- reading -----------------------------------------------------------------------------------------------

    def total(self) -> Tensor:
        """Sum of delta of each channel, (D,) float64."""
        return self.mass.double() / UNIT

    def mean(self) -> Tensor:
        """Mean delta of each channel, (D,) float64."""
        return self.total() / max(1, self.seen)

    def _rest(self) -> Tensor:
        """Counts (D, BINS) of the values that are not in `largest`."""
        stored = min(self.seen, self.largest.shape[1])
        bins = self._bins(self.largest[:, :stored].contiguous().view(torch.int32))
        return self.counts.scatter_add(1, bins, torch.full_like(bins, -1, dtype=torch.int32))

    def threshold(self, share: Tensor | float) -> Tensor:
        """g such that delta > g carries a share of the mass, E[delta; delta > g] = share E[delta]: float64.

        share: a number or (D,) -> (D,); (R, D) -> (R, D). As in the published fit, with the values sorted descending,
        k = (first index whose cumulated sum exceeds the wanted one) + 1 and g = values[k]; without ties exactly the k
        largest survive `> g`. Below the values that are kept, the mass is spread evenly inside a bin.
        A share >= 1 gives 0.
        """
        total = self.mass
        shares = torch.as_tensor(share, dtype=torch.float64, device=total.device)
        # Sums are whole numbers, so one exceeds the wanted mass where it exceeds its whole part.
        wanted = (shares * total).floor().long().expand(*shares.shape[:-1], len(total)).reshape(-1, len(total))
        wanted = wanted.T.contiguous()  # (D, R)
        stored = min(self.seen, self.largest.shape[1])
        values = self.largest[:, :stored].double()
        sums = (values * UNIT).round().long().cumsum(1)
        k = torch.searchsorted(sums, wanted, right=True) + 1
        g = values.gather(1, k.clamp(max=stored - 1))
        if stored < self.seen:
            lower, upper = self._edges()
            inside = self._rest() * ((lower + upper) * (UNIT / 2)).round().long()
            below = sums[:, -1:] + inside.cumsum(1)
            place = torch.searchsorted(below, wanted, right=True).clamp(max=BINS - 1)
            held = inside.gather(1, place)
            part = ((wanted - below.gather(1, place) + held) / held.clamp(min=1)).clamp(0, 1)
            high, low = upper.gather(1, place), lower.gather(1, place)
            g = torch.where(k < stored, g, torch.minimum(high - (high - low) * part, values[:, -1:]))
        g = torch.where(wanted >= total[:, None], 0.0, g).T
        return g if shares.dim() == 2 else g[0]

    def kept_share(self, g: Tensor) -> Tensor:
        """Share of each channel's mass carried by delta > g, (D,) float64; g (D,)."""
        g = g.double()[:, None]
        kept = torch.where(self.largest > g, self.largest, 0.0).double().sum(1)
        if self.seen > self.largest.shape[1]:
            lower, upper = self._edges()
            above = ((upper - torch.maximum(lower, g)) / (upper - lower)).clamp(0, 1)
            kept += (self._rest() * above * (lower + upper) / 2).sum(1)
        return torch.where(g[:, 0] <= 0, 1.0, (kept / self.total().clamp(min=1e-300)).clamp(max=1.0))
