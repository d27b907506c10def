"""The histogram's Triton kernel and its torch oracle: the same integers to the last bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from longscan.calibrate.histogram import BINS, add_histogram
from longscan.calibrate.sketch import DeltaSketch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("tokens", [1, 1000, 1024, 2500])
@pytest.mark.parametrize("scale", [0.01, 2.0, 8.0])
def test_triton_counts_as_torch_does(tokens, scale):
    noise = torch.randn(5, tokens, generator=torch.Generator().manual_seed(tokens))
    columns = F.softplus(noise * scale - 3)
    columns[1, ::3] = 0.0
    grid = DeltaSketch.empty(5, 4)
    grid.add(columns.T)
    found = []
    for backend, device in (("torch", "cpu"), ("triton", DEVICE)):
        counts = torch.arange(5 * BINS, dtype=torch.int32, device=device).view(5, BINS)  # added to, not overwritten
        mass = torch.arange(5, device=device)
        given = (t.to(device) for t in (columns, grid.high, grid._shift()))
        add_histogram(*given, counts, mass, backend)
        found.append((counts.cpu(), mass.cpu()))
    (counts, mass), (other_counts, other_mass) = found
    assert torch.equal(counts, other_counts) and torch.equal(mass, other_mass)
    assert int(counts.sum()) == 5 * tokens + sum(range(5 * BINS))
    exact = (columns.double().sum(1) * 2.0**36 + torch.arange(5)).tolist()
    assert mass.tolist() == pytest.approx(exact, rel=1e-9, abs=tokens)
