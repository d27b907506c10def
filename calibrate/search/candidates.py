"""A candidate: what could be done at one length, in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...runtime.sidecar.plan import MIN_KEEP
from ..recipe.published import published_decimation
from ..recipe.recipe import Recipe, ScoreChannels

Fit = Literal["stretched", "sequential"]


@dataclass(frozen=True)
class FilterPick:
    """Filter the channels with log decay > log_theta in `layers` so that `share` of their mass of delta is kept.

    share = m(S) L / S, where m(S) is the mass factor: 1 keeps as much mass as there was at the training length.
    fit: "stretched" takes delta at S to be distributed as at L, "sequential" measures it at S, layer after layer.
    """

    log_theta: float
    layers: tuple[int, ...]
    share: float
    fit: Fit = "stretched"


@dataclass(frozen=True)
class DecimatePick:
    """Keep floor(base * beta**s) tokens at the s-th of `layers`, scored over `score` channels."""

    layers: tuple[int, ...]
    base: int
    beta: float
    score: ScoreChannels

    def keep(self) -> list[int]:
        return [max(MIN_KEEP, math.floor(self.base * self.beta**s)) for s in range(len(self.layers))]


def published_pick(recipe: Recipe, model_id: str, n_layer: int, train_length: int) -> DecimatePick:
    """The one decimation of a recipe that does not search it: a published row or its fallback."""
    row = published_decimation(recipe, model_id, n_layer, train_length)
    return DecimatePick(tuple(row.layers), row.base, row.beta, recipe.decimate.weights[0])


@dataclass(frozen=True)
class ScalePick:
    """Multiply delta by (S / L) ** -power in the `top` share of the model's channels with the largest mean distance."""

    power: float
    top: float

    def powers(self, furthest: Tensor) -> Tensor:
        """The power of each channel: (n_layer, D), as the mask of the channels of the `top` share."""
        return torch.where(furthest, self.power, 0.0)


@dataclass(frozen=True)
class Candidate:
    """A filter, a decimation, both, a scale, or nothing; rotary: the factor on rotary positions beside it."""

    filter: FilterPick | None = None
    decimate: DecimatePick | None = None
    scale: ScalePick | None = None
    rotary: float = 1.0

    @property
    def method(self) -> str:
        if self.scale:
            return "scale"
        if self.filter and self.decimate:
            return "both"
        return "filter" if self.filter else "decimate" if self.decimate else "none"

    def layers_read(self, length: int, n_layer: int, first: int) -> float:
        """Layers from `first` on that read a prompt of `length` tokens; those above a decimation count in part."""
        keep = dict(zip(self.decimate.layers, self.decimate.keep())) if self.decimate else {}
        kept, read = length, 0.0
        for i in range(n_layer):
            read += kept / length if i >= first else 0.0
            kept = min(kept, keep.get(i, kept))
        return read

    def untouched(self) -> int:
        """Layers at the bottom that read exactly what the plain model's read."""
        if self.scale or self.rotary > 1:
            return 0
        lowest = [pick.layers[0] for pick in (self.filter, self.decimate) if pick]
        return min(lowest, default=0)


NONE = Candidate()


def share_at(length: float, shares: Mapping[int, float], train_length: int) -> float:
    """Kept share at a length above L, by the law of m(S) = share S / L, of which `shares` holds the calibrated lengths.

    log m is linear in log S between neighbours, the first of which is L itself, where m = 1; beyond the last, m stays.
    g has no such law: it is read off each channel's own distribution of delta at the share that m amounts to.
    """
    known = {train_length: 1.0, **shares}
    last = max(known)
    if length >= last:
        return known[last] * last / length
    high = min(n for n in known if n >= length)
    if high == length:
        return known[high]
    low = max(n for n in known if n < length)
    weight = math.log(length / low) / math.log(high / low)
    return math.exp((1 - weight) * math.log(known[low]) + weight * math.log(known[high]))


BEYOND = 12  # half octaves past the last calibrated length at which g is stored


def table_lengths(train_length: int, top: int, lengths: Sequence[int], fine: bool = False) -> list[int]:
    """Where a band's g is stored: just above L, then half octaves up to `top`, and the calibrated lengths.

    fine: quarter octaves, the first in eighths (g rises from 0 there): between rows m(S) is met to a few percent
    """
    octaves = math.log2(max(top, train_length + 1) / train_length)
    an_octave = 4 if fine else 2
    steps = [k / an_octave for k in range(1, math.ceil(an_octave * octaves) + 1)] + [k / 8 for k in range(1, 8) if fine]
    grid = {min(top, round(train_length * 2**step)) for step in steps}
    return sorted(n for n in {train_length + 1, *grid, *lengths} if n > train_length)
