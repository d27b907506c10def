"""Kernels are launched on the GPU that the tensors lie on, whichever is current."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from longscan.kernels.shared import dispatch


@pytest.fixture
def launched(monkeypatch):
    """Two GPUs that are not there: which was current at each launch."""
    current, seen = [0], []

    @contextmanager
    def device(place):
        before, current[0] = current[0], place.index
        try:
            yield
        finally:
            current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    kernels = SimpleNamespace(launch=lambda value, more=0: seen.append(current[0]) or value + more)
    monkeypatch.setattr(dispatch, "_import", lambda operation, backend: kernels)
    return seen


def tensor(place):
    """What a choice of backend asks of a tensor."""
    return SimpleNamespace(device=torch.device(place), dtype=torch.float32, requires_grad=False)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_a_launch_is_on_the_tensors_gpu(launched, backend):
    for place in ("cuda:1", "cuda:0", "cuda:1"):
        assert dispatch.module("scan", backend, [tensor(place)]).launch(1, more=2) == 3
    assert launched == [1, 0, 1] and torch.cuda.current_device() == 0


def test_a_failed_launch_leaves_the_current_gpu(launched):
    with pytest.raises(TypeError):
        dispatch.module("scan", "triton", [tensor("cuda:1")]).launch(None)
    assert launched == [1] and torch.cuda.current_device() == 0


def test_the_cpu_asks_for_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("asked for a GPU"))
    dispatch.module("scan", "triton", [torch.ones(1)])
    dispatch.module("scan", "cpu", [torch.ones(1)])
