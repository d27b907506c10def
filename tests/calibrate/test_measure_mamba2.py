"""Mamba-2's channels are heads: the same numbers as Mamba-1's formulas with A, B and C written out for every head."""

from __future__ import annotations

import torch

from longscan.calibrate.measure import mamba2
from longscan.calibrate.measure.measuring import log_decay, mean_distance

L, H, G, N = 90, 6, 2, 4


def inputs():
    g = torch.Generator().manual_seed(0)
    delta, A = torch.rand(L, H, generator=g) * 0.1, -torch.rand(H, generator=g) * 5
    return delta, A, torch.randn(L, G, N, generator=g), torch.randn(L, G, N, generator=g)


def test_decay_and_distance_are_those_of_heads_written_out():
    delta, A, B, C = inputs()
    decays, distances = log_decay(delta, A), mean_distance(delta, A, B, C[-1])
    for h in range(H):
        a, b, c = mamba2.of_channel(A, B, C, h)
        one = delta[:, h : h + 1]
        assert torch.allclose(decays[h], log_decay(one, a[None])[0], rtol=1e-4)
        assert torch.allclose(distances[h], mean_distance(one, a[None], b, c[-1])[0], rtol=1e-4)
    assert torch.allclose(decays, torch.log(torch.exp(A.double() * delta.double().sum(0))))


def test_groups_of_heads_share_B_and_C():
    _, A, B, C = inputs()
    for h in range(H):
        a, b, c = mamba2.of_channel(A, B, C, h)
        assert (a == A[h]).all() and torch.equal(b, B[:, h // 3]) and torch.equal(c, C[:, h // 3])
    wide = torch.rand(H, N)
    a, b, c = mamba2.of_channel(wide, B[:, 0], C[:, 0], 2)
    assert torch.equal(a, wide[2]) and torch.equal(b, B[:, 0]) and torch.equal(c, C[:, 0])
