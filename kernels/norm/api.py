"""The norms: arguments checked once, then handed to a backend.

M features
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..operators import public
from ..shared.arguments import floats, shape
from ..shared.dispatch import module
from . import reference


@public
def rms_norm(
    x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype | None = None, *, backend: str = "auto"
) -> Tensor:
    """y = weight x / sqrt(mean(x^2) + epsilon), computed in float32 (float64 where x is).

    x: (..., M), any strides; weight: (M,); dtype: of y, None = that of x

    Returns y (..., M). Raises ValueError as selective_scan.
    """
    given = floats(x=x, weight=weight)
    _features("x", x, weight)
    found: Tensor = _module(backend, given).rms_norm(x, weight, epsilon, x.dtype if dtype is None else dtype)
    return found


@public
def add_rms_norm(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    epsilon: float,
    dtype: torch.dtype | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """rms_norm of residual + x, in `dtype` (None: that of x), and the sum, in the wider of their dtypes, in one pass.

    residual, x: (..., M), any strides; weight: (M,)

    Returns (norm, residual + x), both (..., M). Raises ValueError as selective_scan.
    """
    given = floats(residual=residual, x=x, weight=weight)
    _features("residual", residual, weight)
    shape("x", x, tuple(residual.shape))
    run = _module(backend, [x, *given])  # x decides
    found: tuple[Tensor, Tensor] = run.add_rms_norm(residual, x, weight, epsilon, x.dtype if dtype is None else dtype)
    return found


@public
def gated_rms_norm(
    x: Tensor,
    z: Tensor,
    weight: Tensor | None,
    epsilon: float,
    groups: int = 1,
    norm_before_gate: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Mamba-2's norm behind the scan: rms_norm(x silu(z)) within each of `groups` equal parts of the features.

    x, z: (..., M), any strides; weight: (M,), None = x silu(z) alone
    norm_before_gate: rms_norm(x) silu(z) instead

    Returns (..., M) in the dtype of x. Raises ValueError as selective_scan.
    """
    given = floats(x=x, z=z, weight=weight)
    _features("x", x, weight)
    shape("z", z, tuple(x.shape))
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"groups must divide the {x.shape[-1]} features, found {groups}")
    found: Tensor = _module(backend, given).gated_rms_norm(x, z, weight, epsilon, groups, norm_before_gate)
    return found


@public
def inner_rms_norm(x: Tensor, rank: int, epsilon: float, *, backend: str = "auto") -> Tensor:
    """Falcon-Mamba's norms of delta's low rank, B and C: each part of x over its own root mean square, no weight.

    x: (..., R + 2 N), the output of x_proj, any strides; rank: R; v / sqrt(mean(v^2) + epsilon) for the first R
    features, the next N and the last N, computed in float32 (float64 where x is)

    Returns (..., R + 2 N) in the dtype of x. Raises ValueError as selective_scan, and where x has no such parts.
    """
    _features("x", x, None)
    if rank < 1 or x.shape[-1] <= rank or (x.shape[-1] - rank) % 2:
        raise ValueError(f"rank must leave two equal parts of the {x.shape[-1]} features, found {rank}")
    found: Tensor = _module(backend, floats(x=x)).inner_rms_norm(x, rank, epsilon)
    return found


def _features(name: str, t: Tensor, weight: Tensor | None) -> None:
    if not t.dim():
        raise ValueError(f"{name} has shape (), expected (..., M)")
    shape("weight", weight, (t.shape[-1],))


def _module(backend: str, given: Sequence[Tensor]) -> Any:
    """A compiler that traces fuses torch's operations itself."""
    return reference if torch.compiler.is_compiling() else module("norm", backend, given)
