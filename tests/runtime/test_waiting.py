"""A decode step as a GPU runs it asks for no value: the host never waits, and a CUDA graph can record it."""

from __future__ import annotations

import pytest
import torch

from longscan.kernels.scan import triton as scan_triton
from longscan.runtime import load

from ..conftest import NoWaiting


@pytest.fixture
def asked(monkeypatch):
    """The tensors of which .tolist() was asked."""
    found = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t, run=torch.Tensor.tolist: found.append(t) or run(t))
    return found


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("unequal", [False, True])
def test_a_step_waits_for_nothing(folder, sidecar, asked, monkeypatch, filtered, unequal):
    """All of it but the launches themselves, which Triton's interpreter makes of values."""
    lm = load(folder, sidecar if filtered else None, backend="triton")
    ids = torch.randint(0, 64, (2, 40), generator=torch.Generator().manual_seed(0))
    state = lm.prefill([ids[0], ids[1, :20]] if unequal else ids, method="filter" if filtered else "none").state
    launched = []

    def step(state, given):
        launched.append(given.threshold)
        return torch.zeros_like(given.x)

    monkeypatch.setattr(scan_triton, "selective_step", step)
    lm.step(ids[:, 0], state)  # looks thresholds up, once a cell
    asked.clear()
    with torch.inference_mode(), NoWaiting():
        for t in range(3):
            logits, state = lm.step(ids[:, t], state)
    assert len(launched) == 4 * 3 and all((g is not None) == filtered for g in launched)
    assert all(
        t.device.type == "cpu" and t.dtype == torch.int64 and t.shape == (2,) for t in asked
    )  # lengths, the sidecar's too
    assert logits.shape == (2, 64)


def test_the_test_sees_waiting():
    """It fails where a step asks."""
    for ask in (bool, int, float, torch.Tensor.item, lambda t: t.nonzero()):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            ask(torch.ones(()))
