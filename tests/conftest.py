"""Shared by all tests: no hub, few threads, the Triton interpreter where there is no GPU."""

from __future__ import annotations

import inspect
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Several processes with spinning threads slow each other tenfold on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import is_hypothesis_test
from torch.utils._python_dispatch import TorchDispatchMode

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported


WHOLE = ("subprocess", "CliRunner", "Client", "Browser")  # a module that imports one of these runs whole programs
SLOW = ("triton", "demo", "load_benchmark")  # a test that names one runs an interpreter, a trained model, long inputs


def is_quick(item: pytest.Function) -> bool:
    """What `make quick` runs, read off the test: no other process, no command line, no property tried many times."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    named = f"{inspect.getsource(item.function)} {parameters}"
    whole = any(hasattr(item.module, name) for name in WHOLE)
    return not (whole or any(name in named for name in SLOW) or is_hypothesis_test(item.function))


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    for item in items:
        if is_quick(item):
            item.add_marker("quick")
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
