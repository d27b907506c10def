"""A candidate: what could be done at one length, in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..runtime.plan import MIN_KEEP

Fit = Literal["stretched", "sequential"]
ScoreChannels = Literal["all", "global", "relative", "reach"]


@dataclass(frozen=True)
class FilterPick:
    """Filter the channels with log decay > log_theta in `layers` so that `share` of their mass of delta is kept.

    share = m(S) L / S, where m(S) is the mass factor: 1 keeps as much mass as there was at the training length.
    tilt: factors on the share by layer of the model; empty = 1 everywhere.
    fit: "stretched" takes delta at S to be distributed as at L, "sequential" measures it at S, layer after layer.
    """

    log_theta: float
    layers: tuple[int, ...]
    share: float
    tilt: tuple[float, ...] = ()
    fit: Fit = "stretched"

    def share_of(self, layer: int, share: float | None = None) -> float:
        """The share kept in one layer, at most 1; `share` instead of the pick's own."""
        return min(1.0, (self.share if share is None else share) * (self.tilt[layer] if self.tilt else 1.0))


@dataclass(frozen=True)
class DecimatePick:
    """Keep floor(base * beta**s) tokens at the s-th of `layers`, scored over `score` channels."""

    layers: tuple[int, ...]
    base: int
    beta: float
    score: ScoreChannels

    def keep(self) -> list[int]:
        return [max(MIN_KEEP, math.floor(self.base * self.beta**s)) for s in range(len(self.layers))]


@dataclass(frozen=True)
class ScalePick:
    """Multiply delta by (S / L) ** -power in the `top` share of the model's channels with the largest mean distance.

    powers: one a layer, for all its channels, in the place of power and top; empty = those.
    """

    power: float
    top: float
    powers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """A filter, a decimation, both, a scale, or nothing."""

    filter: FilterPick | None = None
    decimate: DecimatePick | None = None
    scale: ScalePick | None = None

    @property
    def method(self) -> str:
        if self.scale:
            return "scale"
        if self.filter and self.decimate:
            return "both"
        return "filter" if self.filter else "decimate" if self.decimate else "none"

    def untouched(self) -> int:
        """Layers at the bottom that read exactly what the plain model's read."""
        if self.scale:
            return 0
        lowest = [pick.layers[0] for pick in (self.filter, self.decimate) if pick]
        return min(lowest, default=0)


NONE = Candidate()


def share_at(length: float, shares: Mapping[int, float], train_length: int) -> float:
    """Kept share at any length: log-linear between calibrated lengths, constant beyond the last.

    Below the first, where only scans shortened by decimation look, at least the training mass: max(share, L / S).
    """
    known = sorted(shares)
    if length <= known[0]:
        return max(shares[known[0]], train_length / length) if length < known[0] else shares[known[0]]
    if length >= known[-1]:
        return shares[known[-1]]
    high = next(n for n in known if n >= length)
    low = known[known.index(high) - 1]
    weight = math.log(length / low) / math.log(high / low)
    return math.exp((1 - weight) * math.log(shares[low]) + weight * math.log(shares[high]))


def table_lengths(train_length: int, top: int, lengths: Sequence[int]) -> list[int]:
    """Where a band's g is stored: just above L, then half octaves up to `top`, and the calibrated lengths."""
    steps = math.ceil(2 * math.log2(max(top, train_length + 1) / train_length))
    grid = {min(top, round(train_length * 2 ** (k / 2))) for k in range(1, steps + 1)}
    return sorted(n for n in {train_length + 1, *grid, *lengths} if n > train_length)
