"""A candidate: what could be done at one length, in a few numbers; and its tables, built from the measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..runtime.plan import MIN_KEEP
from ..runtime.sidecar import Band
from .measure import LayerMeasurement

ScoreChannels = Literal["all", "global"]
_LOCAL_LOG_DECAY, _TOP_SHARE = -2.0, 0.2  # "global" for a score: log decay > -2, or the top fifth of the layer


@dataclass(frozen=True)
class FilterPick:
    """Filter the channels with log decay > log_theta in `layers` so that `share` of their mass of delta is kept.

    share = m(S) L / S, where m(S) is the mass factor: 1 keeps as much mass as there was at the training length.
    """

    log_theta: float
    layers: tuple[int, ...]
    share: float


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
class Candidate:
    """A filter, a decimation, both, or neither."""

    filter: FilterPick | None = None
    decimate: DecimatePick | None = None

    @property
    def method(self) -> str:
        if self.filter and self.decimate:
            return "both"
        return "filter" if self.filter else "decimate" if self.decimate else "none"


NONE = Candidate()


def global_channels(layer: LayerMeasurement, log_theta: float) -> Tensor:
    """LongMamba's classification of one layer: (D,) bool, decay > theta."""
    return layer.decay() > log_theta


def score_weights(layer: LayerMeasurement, score: ScoreChannels) -> Tensor:
    """Weights (D,) float32 of decimation's score: 1 for every channel, or for the layer's global ones only."""
    decay = layer.decay()
    if score == "all":
        return torch.ones(len(decay))
    top = decay >= decay.quantile(1 - _TOP_SHARE)
    return (top | (decay > _LOCAL_LOG_DECAY)).float()


def thresholds(layers: Sequence[LayerMeasurement], pick: FilterPick, shares: Sequence[float]) -> Tensor:
    """g for each of `shares`: (len(shares), n_layer, D) float32, 0 in local channels and layers not filtered."""
    table = torch.zeros(len(shares), len(layers), len(layers[0].decay()))
    for i in pick.layers:
        chosen = global_channels(layers[i], pick.log_theta)
        for row, share in enumerate(shares):
            table[row, i] = torch.where(chosen, layers[i].sketch.threshold(share).float(), 0.0)
    return table


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


def band_tensors(
    layers: Sequence[LayerMeasurement],
    filter_picks: Mapping[int, FilterPick],
    decimate: DecimatePick | None,
    train_length: int,
) -> dict[str, Tensor]:
    """The tensors of one band (names without their prefix). filter_picks: calibrated length -> pick; may be empty."""
    tensors: dict[str, Tensor] = {}
    if filter_picks:
        shares = {length: pick.share for length, pick in filter_picks.items()}
        at = table_lengths(train_length, max(shares), list(shares))
        pick = filter_picks[min(filter_picks)]
        tensors["lengths"] = torch.tensor(at)
        tensors["thresholds"] = thresholds(layers, pick, [share_at(n, shares, train_length) for n in at])
    if decimate:
        tensors["layers"] = torch.tensor(decimate.layers)
        tensors["keep"] = torch.tensor(decimate.keep())
        tensors["weights"] = torch.stack([score_weights(layers[i], decimate.score) for i in decimate.layers])
    return tensors


def band_entry(
    method: str, filter_picks: Mapping[int, FilterPick], decimate: DecimatePick | None, lengths: Sequence[int], L: int
) -> Band:
    """The policy's entry of the same band."""
    log_theta = filter_picks[min(filter_picks)].log_theta if filter_picks else None
    return Band(
        lengths=tuple(sorted(lengths)),
        method=method,
        theta=None if log_theta is None else math.exp(log_theta),
        log_theta=log_theta,
        mass={str(n): round(pick.share * n / L, 6) for n, pick in sorted(filter_picks.items())},
        score=decimate.score if decimate else "all",
    )
