"""The matrix product of a projection: a fast loop for a few tokens on a CPU, torch's everywhere else.

K inputs   O outputs
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.dispatch import BACKENDS, has_numba, module

FEW = 4  # vectors; torch's matrix product is at least as fast for more
_STORED = (torch.float32, torch.bfloat16)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """y = x weight^T + bias, as torch.nn.functional.linear computes it, on all threads where x is a few vectors.

    x: (..., K); weight: (O, K); bias: (O,) or None, all of one floating-point dtype
    backend: "auto" and "cpu" read a contiguous float32 or bfloat16 weight on a CPU once for at most 4 vectors; any
        other product, and any backend's with a gradient, is torch's

    Returns y (..., O) in the dtype of x. Raises what torch's function raises on what does not fit, and ValueError on an
    unknown backend.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"unknown backend {backend!r}; use auto, {', '.join(BACKENDS)}")
    if torch.compiler.is_compiling() or backend not in ("auto", "cpu") or not _few(x, weight, bias):
        return F.linear(x, weight, bias)
    return module("linear", "cpu", (x,)).linear(x, weight, bias)


def is_stored(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight of a model in `dtype` is one that the loop can read."""
    return (
        dtype in _STORED
        and type(weight) in (Tensor, torch.nn.Parameter)  # a quantised weight has an arithmetic of its own
        and weight.dtype == dtype
        and weight.device.type == "cpu"
        and weight.dim() == 2
        and weight.is_contiguous()
        and has_numba()
    )


def _few(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the loop takes it, and is the faster."""
    if x.device.type != "cpu" or not is_stored(weight, x.dtype) or not x.dim() or x.shape[-1] != weight.shape[1]:
        return False
    if not 0 < x.numel() <= FEW * weight.shape[1]:
        return False
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype or bias.device != x.device):
        return False
    given = (x, weight) if bias is None else (x, weight, bias)
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in given))
