"""Which backend runs: never a silent fallback, one log line a choice."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("reference", "cpu", "triton")
_log = logging.getLogger("longscan.kernels")


def module(operation: str, backend: str, given: Sequence[Tensor]) -> Any:
    """An operation's ("scan", "ssd", ...) module of a backend ("auto": by the first input's device and dtype).

    Raises ValueError if it cannot take the inputs, ImportError if what it needs is not installed.
    """
    backend = _resolve(backend, given)
    found = _import(operation, backend)
    return found if backend != "triton" else on_device(found, given[0].device)


def on_triton(backend: str, *given: Tensor) -> bool:
    """Whether an operation on these tensors is a launch of a Triton kernel, and not a compiler's to fuse."""
    return not torch.compiler.is_compiling() and _resolve(backend, given) == "triton"


def on_device(found: Any, device: torch.device) -> Any:
    """A module whose functions launch kernels, with the tensors' GPU as the current one: Triton launches on that."""
    if device.type != "cuda" or device.index in (None, torch.cuda.current_device()):
        return found
    return _Placed(found, device)


class _Placed:
    def __init__(self, found: Any, device: torch.device):
        self._found, self._device = found, device

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._found, name)

        def placed(*args: Any, **kwargs: Any) -> Any:
            with torch.cuda.device(self._device):
                return function(*args, **kwargs)

        return placed


def _resolve(backend: str, given: Sequence[Tensor]) -> str:
    tensor = given[0]
    if backend == "auto":
        backend, why = _choose(tensor.device.type, tensor.dtype)
        _note(backend, why)
    elif backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}")
    if backend == "cpu" and (tensor.device.type != "cpu" or tensor.dtype == torch.float64):
        raise ValueError(f"the cpu backend takes float32 tensors on the CPU, found {tensor.dtype} on {tensor.device}")
    if backend == "triton" and tensor.dtype == torch.float64:
        raise ValueError("the triton backend computes in float32, found float64; use backend='reference'")
    if backend != "reference" and torch.is_grad_enabled() and any(t.requires_grad for t in given):
        raise ValueError(
            f"the {backend} backend has no gradient; call it under torch.no_grad(), or use backend='reference'"
        )
    return backend


@lru_cache
def has_numba() -> bool:
    """Whether the cpu backend can run."""
    return find_spec("numba") is not None


@lru_cache
def _choose(device: str, dtype: torch.dtype) -> tuple[str, str]:
    if dtype == torch.float64:
        return "reference", "float64 asks for the oracle"
    if device == "cuda":
        if find_spec("triton"):
            return "triton", "tensors on a GPU"
        return "reference", "tensors on a GPU, but triton is not installed (pip install triton): this is slow"
    if device == "cpu":
        if has_numba():
            return "cpu", "tensors on the CPU"
        return "reference", "tensors on the CPU, but numba is not installed (pip install numba): this is slow"
    return "reference", f"no fast kernels for {device} tensors: this is slow"


@lru_cache
def _note(backend: str, why: str) -> None:
    _log.log(logging.WARNING if "slow" in why else logging.INFO, "kernels: %s backend (%s)", backend, why)


@lru_cache
def _import(operation: str, backend: str) -> Any:
    return import_module(f"..{operation}.{backend}", __package__)
