"""Shared by all tests: no hub, few threads, the Triton interpreter where there is no GPU."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Several processes with spinning threads slow each other tenfold on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


class NoWaiting(TorchDispatchMode):
    """No .item(), bool(tensor), nonzero: nothing for which the host would wait for a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        ), "waits for a GPU"
        return function(*args, **(kwargs or {}))


def relative_rms(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """RMS of the difference over RMS of what is wanted."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp(min=1e-30))


@pytest.fixture(name="relative_rms")
def _relative_rms():
    return relative_rms
