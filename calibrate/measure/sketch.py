"""Mergeable sketches of delta: per channel, the largest values as they are and a histogram of all the rest.

Everything kept is a function of the multiset of values seen, so windows, batches or processes may be added in any order
and give the same bits. Each channel has the finest grid (histogram.py) that spans the values not kept as they are: 448
bins, from 1/512 of an octave at the top to 1/8 at the bottom where the values span 15 octaves, finer where they span
less; what lies below falls into the lowest bin. Sums follow from the counts; the total is kept exactly.

A small share of the mass is a matter of few tokens, often with gaps and ties between them that no histogram resolves:
hence the largest values themselves (`largest`), as many as memory allows: with them g(S) keeps, in every channel, what
the exact g keeps to 1% or one token's mass (benchmarks/sketch_error.py). Masses are integers, so that sums have the
same bits in any order and on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .histogram import BINS, UNIT, bin_of, edge_bits, grid_shift, grid_top, histogram

_VALUES = 240_000_000  # exact values kept in a whole model: 960 MB
_MOST_VALUES = 16_384  # a channel; merging sorts them
_STANDS_OUT = 8  # tokens more than twice its fuller neighbour's, so many that a bin has hardly by chance
_NO_VALUE = torch.iinfo(torch.int32).max


def exact_values(channels: int, tokens: int) -> int:
    """How many of the largest values each channel keeps, for a model of so many channels in all its layers."""
    return max(1, min(tokens, _MOST_VALUES, _VALUES // channels))


@dataclass
class DeltaSketch:
    """One layer's delta (after bias and softplus).

    largest: (D, K) float32, the K largest values of each channel, descending, zeros while fewer were seen
    counts: (D, BINS) int32, tokens that are not in `largest` by bin, the highest bin first
    high, low: (D,) int32, bits of the largest and the smallest of these tokens' values: they fix each channel's grid
    mass: (D,) int64, these tokens' sum of delta in units of 2^-36 (overflows past 2^27: a thousand times any text here)
    seen: tokens, all of them
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

    def tensors(self) -> tuple[Tensor, ...]:
        """What to store or send, with `seen`."""
        return self.largest, self.counts, self.high, self.low, self.mass

    def add(self, delta: Tensor) -> None:
        """Count delta (T, D) float32 >= 0 in place."""
        self._take(delta.T, delta.shape[0])

    def merge(self, other: DeltaSketch) -> None:
        """Add another sketch of the same K in place; commutative and associative to the bit."""
        self._span(other.high, other.low)
        theirs = DeltaSketch.of(other.tensors(), other.seen)
        theirs._span(self.high, self.low)
        self.counts = self.counts + theirs.counts
        self.mass = self.mass + other.mass
        self._take(other._stored(), other.seen)

    def _stored(self) -> Tensor:
        """The values kept as they are, (D, min(K, seen))."""
        return self.largest[:, : self.seen]

    def _take(self, values: Tensor, seen: int) -> None:
        """Add values (D, V) of `seen` tokens: the K largest of all stay as they are, the rest is counted."""
        every = torch.cat([self._stored(), values], 1)
        self.seen += seen
        K = self.largest.shape[1]
        if every.shape[1] <= K:
            self.largest[:, : every.shape[1]] = every.sort(1, descending=True).values
            return
        ordered = every.topk(K + 1, dim=1).values
        self.largest = ordered[:, :K].contiguous()
        self._span(ordered[:, K].contiguous().view(torch.int32), every.amin(1).view(torch.int32))
        for columns, sign in ((every, 1), (self.largest, -1)):
            for mine, more in zip((self.counts, self.mass), histogram(columns, *self._grid())):
                mine.add_(more, alpha=sign)

    # -- the grid ----------------------------------------------------------------------------------------------

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Each channel's top and shift, (D,) int32 each."""
        shift = grid_shift(self.high, self.low)
        return grid_top(self.high, shift), shift

    def _span(self, high: Tensor, low: Tensor) -> None:
        """Widen the grids to include the bits high and low (D,), moving the counts to their new bins."""
        old = self._grid()
        high, low = torch.maximum(self.high, high), torch.minimum(self.low, low)
        if torch.equal(self.high, high) and torch.equal(self.low, low):
            return
        self.high, self.low = high, low
        moved = bin_of(edge_bits(*old)[0], *self._grid())
        self.counts = torch.zeros_like(self.counts).scatter_add_(1, moved, self.counts)

    def _edges(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest value every bin takes, (D, BINS) float64 each."""
        lower, upper = edge_bits(*self._grid())
        return lower.view(torch.float32).double(), upper.view(torch.float32).double()

    def _inside(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Mass of every bin, (D, BINS) int64: its tokens at its middle, scaled so that all bins hold `mass`."""
        about = self.counts * ((lower + upper) * (UNIT / 2)).round().long()  # whole numbers, for an exact sum
        return (about * (self.mass / about.sum(1).clamp(min=1))[:, None]).round().long()

    # -- reading -----------------------------------------------------------------------------------------------

    def _masses(self) -> Tensor:
        """Mass of each of the largest values, (D, min(K, seen)) int64."""
        return (self._stored().double() * UNIT).round().long()

    def total(self) -> Tensor:
        """Sum of delta of each channel, (D,) float64."""
        return (self.mass + self._masses().sum(1)).double() / UNIT

    def mean(self) -> Tensor:
        """Mean delta of each channel, (D,) float64."""
        return self.total() / max(1, self.seen)

    def threshold(self, share: Tensor | float) -> Tensor:
        """g such that delta > g carries a share of the mass, E[delta; delta > g] = share E[delta]: float64.

        share: a number or (D,) -> (D,); (R, D) -> (R, D). As in the published fit, with the values sorted descending,
        k = (first index whose cumulated sum exceeds the wanted one) + 1 and g = values[k]; without ties exactly the k
        largest survive `> g`. A share >= 1 gives 0.
        """
        values, sums = self._stored().double(), self._masses().cumsum(1)
        stored, total = values.shape[1], self.mass + sums[:, -1]
        shares = torch.as_tensor(share, dtype=torch.float64, device=total.device)
        # Sums are whole numbers, so one exceeds the wanted mass where it exceeds its whole part.
        wanted = (shares * total).floor().long().expand(*shares.shape[:-1], len(total)).reshape(-1, len(total))
        wanted = wanted.T.contiguous()  # (D, R)
        k = torch.searchsorted(sums, wanted, right=True) + 1
        g = values.gather(1, k.clamp(max=stored - 1))
        if stored < self.seen:
            rest = self._binned(wanted - sums[:, -1:], sums[:, -1:])
            g = torch.where(k < stored, g, torch.minimum(rest, values[:, -1:]))
        g = torch.where(wanted >= total[:, None], 0.0, g).T
        return g if shares.dim() == 2 else g[0]

    def _binned(self, wanted: Tensor, stored: Tensor) -> Tensor:
        """values[k] where it is in a bin, (D, R) float64.

        wanted: (D, R) int64, mass to keep of the tokens in bins, < 0 if none; stored: (D, 1) int64, mass of `largest`.
        A bin's tokens are spread evenly over it. But one that stands out and holds 1% of the mass above it is taken for
        one value that many tokens have (the same few tokens in the first layer, delta rounded to bfloat16 in any).
        """
        lower, upper = self._edges()
        inside = self._inside(lower, upper)
        mass, tokens = inside.cumsum(1), self.counts.long().cumsum(1)
        place = torch.searchsorted(mass, wanted, right=True).clamp(max=BINS - 1)
        n, held = self.counts.gather(1, place), inside.gather(1, place)
        into = ((wanted - mass.gather(1, place) + held) * (n / held.clamp(min=1))).long()
        k = tokens.gather(1, place) - n + torch.minimum(into, n - 1) + 1
        k = torch.where(wanted < 0, 0, k).clamp(max=tokens[0, -1] - 1)  # as an index of the tokens in bins
        place = torch.searchsorted(tokens, k, right=True)
        n, held = self.counts.gather(1, place), inside.gather(1, place)
        part = (k - tokens.gather(1, place) + n + 0.5) / n
        beside = F.pad(self.counts, (1, 1))
        fuller = torch.maximum(beside.gather(1, place), beside.gather(1, place + 2))
        above = stored + mass.gather(1, place) - held
        part = torch.where((n > 2 * fuller + _STANDS_OUT) & (100 * held > above), 0.0, part)
        high, low = upper.gather(1, place), lower.gather(1, place)
        return high - (high - low) * part

    def kept_share(self, g: Tensor) -> Tensor:
        """Share of each channel's mass carried by delta > g, (D,) float64; g (D,)."""
        g = g.double()[:, None]
        kept = torch.where(self.largest > g, self.largest, 0.0).double().sum(1)
        if self.seen > self.largest.shape[1]:
            lower, upper = self._edges()
            above = ((upper - torch.maximum(lower, g)) / (upper - lower).clamp(min=1e-300)).clamp(0, 1)
            kept += (self._inside(lower, upper) * above).sum(1) / UNIT
        return torch.where(g[:, 0] <= 0, 1.0, (kept / self.total().clamp(min=1e-300)).clamp(max=1.0))
