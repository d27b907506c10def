"""A forward pass in bfloat16 measures and ranks as one in float32 does: what a run picks from is nearly the same."""

from __future__ import annotations

import pytest
import torch

from longscan.calibrate.measure.measuring import measure
from longscan.calibrate.search.tasks import tail_losses
from longscan.runtime import load

from ..checkpoints import make_sidecar
from .conftest import DEMO_TEXT


@pytest.fixture(scope="module", params=["demo", "demo-mamba2"])
def lms(request):
    return [load(request.param, dtype=dtype) for dtype in ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def windows():
    return torch.tensor(list(DEMO_TEXT.read_bytes()[: 16 * 256])).view(16, 256)


def test_statistics_agree(lms, windows):
    """Decays, which make channels global, and the mass that passes a threshold read off the other dtype's deltas. Where
    a channel gives many tokens one value, a threshold beside it may take all of them or none: a tenth may."""
    off = []
    for one, other in zip(*(measure(lm, windows, 2048) for lm in lms)):
        assert torch.allclose(one.log_decay, other.log_decay, rtol=0.05)
        global_ones = [layer.log_decay > torch.tensor(0.01).log() for layer in (one, other)]
        assert (global_ones[0] != global_ones[1]).sum() <= 0.02 * global_ones[0].numel()
        kept = [layer.sketch.kept_share(one.sketch.threshold(0.3)) for layer in (one, other)]
        off.append((kept[1] / kept[0] - 1).abs())
    assert torch.cat(off).median() < 0.02 and torch.cat(off).quantile(0.9) < 0.25


def test_losses_differ_alike(lms, windows):
    """Plain and filtered at 16 L: the difference that decides moves by far less than it is."""
    long = windows.reshape(1, 4096)
    side = make_sidecar(lms[0], 256, share=20.0)
    found = []
    for lm in lms:
        plain, filtered = (tail_losses(own, long, 256, "auto", 8192) for own in (lm, lm.with_sidecar(side)))
        found.append((float(plain.mean()), float((filtered - plain).mean())))
    (plain, gain), (rough, rough_gain) = found
    assert abs(plain - rough) < 2e-3 * plain and abs(gain - rough_gain) < max(2e-3, 0.1 * abs(gain))
