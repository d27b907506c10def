"""Sketches, decays, distances and the published g(S), each against a transcription in float64."""

from __future__ import annotations

import math

import pytest
import torch

from longscan.calibrate.measure.measuring import log_decay, mean_distance
from longscan.calibrate.measure.published_fit import published_g


def transcribed_g(delta: list[float], S: int, C: float | None) -> float:
    """methods.md's published fit for one channel, number by number."""
    L = len(delta)
    if S <= L:
        return 0.0
    if C is not None:
        cap = sorted(delta, reverse=True)[max(1, int(L * C)) - 1]
        delta = [min(d, cap) for d in delta]
    target = math.fsum(delta)
    ordered = sorted(delta, reverse=True)
    stretched = []
    for i in range(S):  # linear interpolation, align_corners=False
        at = min(max((i + 0.5) * L / S - 0.5, 0.0), L - 1.0)
        low = int(at)
        high = min(low + 1, L - 1)
        stretched.append(ordered[low] + (at - low) * (ordered[high] - ordered[low]))
    total = 0.0
    for i, value in enumerate(stretched):
        total += value
        if total > target * (1 + 1e-12):
            return stretched[min(i + 1, S - 1)]
    return 0.0


@pytest.mark.parametrize("C", [None, 0.05, 0.2, 0.001])
@pytest.mark.parametrize("S", [20, 50, 51, 80, 500, 5000])
def test_published_g_equals_the_transcription(C, S):
    g = torch.Generator().manual_seed(S)
    delta = torch.rand(50, 6, generator=g).double() ** 3 + 1e-4
    delta[:, 2] = delta[:, 2].round(decimals=1) + 0.05  # ties
    found = published_g(delta, S, C)
    for channel in range(6):
        assert float(found[channel]) == pytest.approx(transcribed_g(delta[:, channel].tolist(), S, C), rel=1e-9)


def test_published_g_keeps_exactly_the_k_largest():
    delta = (torch.rand(100, 1, generator=torch.Generator().manual_seed(0)) ** 4 + 1e-3).double()
    S = 400
    g = float(published_g(delta, S, None))
    ordered = delta[:, 0].sort(descending=True).values
    stretched = torch.nn.functional.interpolate(ordered[None, None], S, mode="linear", align_corners=False)[0, 0]
    kept = stretched[stretched > g]
    assert kept.sum() > delta.sum() and kept[:-1].sum() <= delta.sum()


def test_a_target_never_exceeded_gives_zero():
    assert float(published_g(torch.zeros(10, 1).double(), 20, None)) == 0.0  # the released code would keep one token


def test_log_decay_is_the_mean_over_states_at_each_step():
    delta, A = torch.rand(130, 3), -torch.rand(3, 4) * 5
    wanted = [
        math.fsum(math.log(sum(math.exp(float(delta[t, d] * A[d, n])) for n in range(4)) / 4) for t in range(130))
        for d in range(3)
    ]
    torch.testing.assert_close(log_decay(delta, A), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_mean_distance_is_that_of_the_explicit_attention_matrix():
    g = torch.Generator().manual_seed(0)
    L, D, N = 90, 3, 4
    delta, A = torch.rand(L, D, generator=g), -torch.rand(D, N, generator=g)
    B, C = torch.randn(L, N, generator=g), torch.randn(L, N, generator=g)
    found = mean_distance(delta, A, B, C[-1])
    each = []
    for d in range(D):
        M = torch.zeros(L, dtype=torch.float64)
        for j in range(L):
            a = torch.exp(delta[j + 1 :, d, None].double() * A[d].double()).prod(0)
            M[j] = (C[-1].double() * a * delta[j, d].double() * B[j].double()).sum()
        distance = torch.arange(L - 1, -1, -1).double()
        each.append(float((distance * M.abs()).sum() / M.abs().sum()))
    assert found.tolist() == pytest.approx(each, rel=1e-4)
