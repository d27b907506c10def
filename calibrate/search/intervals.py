"""Paired bootstrap: is one candidate better than another beyond the luck of the windows?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from .scoring import Score

_MOST_DRAWS = 1 << 24  # torch takes a quantile of no more
_AT_ONCE = 1 << 24  # windows drawn at once, 16 bytes each


def interval(difference: Tensor, confidence: float, draws: int, seed: int) -> tuple[float, float]:
    """Interval of the mean of paired differences (n,) in float64; (-inf, inf) for a single one.

    The percentile interval, its deviations widened by sqrt(n / (n - 1)) t_{n-1} / z: that of a few windows alone is
    too narrow (Hesterberg 2015).
    """
    return value_interval([(1.0, difference)], confidence, draws, seed)


def value_interval(
    parts: Sequence[tuple[float, Tensor]], confidence: float, draws: int, seed: int
) -> tuple[float, float]:
    """Interval of a weighted sum of means; the windows of different tasks are drawn independently, `draws` times, more
    where that leaves fewer than twenty in either tail."""
    draws = min(max(draws, math.ceil(40 / (1 - confidence))), _MOST_DRAWS)
    generator = torch.Generator().manual_seed(seed)
    centre, deviations = 0.0, torch.zeros(draws, dtype=torch.float64)
    for weight, difference in parts:
        n = len(difference)
        if not n:
            continue
        if n == 1:
            return -torch.inf, torch.inf
        mean = difference.mean()
        centre += weight * float(mean)
        some = max(1, _AT_ONCE // n)  # the draws are the same in however many parts
        sizes = [min(some, draws - done) for done in range(0, draws, some)]
        drawn = [difference[torch.randint(n, (rows, n), generator=generator)].mean(1) for rows in sizes]
        deviations += weight * _widening(n, confidence) * (torch.cat(drawn) - mean)
    edge = (1 - confidence) / 2
    return centre + float(deviations.quantile(edge)), centre + float(deviations.quantile(1 - edge))


def clearly_better(one: Score, other: Score, confidence: float, draws: int, seed: int) -> bool:
    """Whether a candidate's value exceeds another's, on the same windows and trials, beyond the interval; any number
    exceeds none."""
    if not math.isfinite(other.value):
        return math.isfinite(one.value)
    parts = [(-1.0, one.losses - other.losses), (1.0, one.answered - other.answered)]
    return value_interval(parts, confidence, draws, seed)[0] > 0


def within(one: Score, other: Score, loss_margin: float) -> bool:
    """Whether one reads worse than another by no more than a margin, and answers no fewer, each to a standard error."""
    more, lost = one.losses - other.losses, other.answered - one.answered
    return _least(more) <= loss_margin and _least(lost) <= 0


def _least(difference: Tensor) -> float:
    """Its mean less a standard error; 0 where there is none."""
    n = len(difference)
    return float(difference.mean() - (difference.std() / math.sqrt(n) if n > 1 else 0)) if n else 0.0


def _widening(n: int, confidence: float) -> float:
    """sqrt(n / (n - 1)) t / z for n - 1 degrees of freedom; t by the Cornish-Fisher expansion."""
    z, v = NormalDist().inv_cdf((1 + confidence) / 2), n - 1
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return float((n / v) ** 0.5 * t / z)
