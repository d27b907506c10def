"""The launches of the norms' Triton kernels."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..shared.triton_launch import FUSED, dense, dense_rows
from .triton_kernel import gated_rms, inner_rms, rms

NORM_CONFIG = {"num_warps": 4}
GATED_CONFIG = {"num_warps": 8}  # twice as wide, and read beside z
INNER_CONFIG = {"num_warps": 1}  # a few hundred features at most


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """See longscan.kernels.rms_norm."""
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    _rms(x, None, weight, None, y, epsilon)
    return y


def add_rms_norm(
    residual: Tensor, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.add_rms_norm."""
    total = torch.empty(x.shape, dtype=torch.promote_types(residual.dtype, x.dtype), device=x.device)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    _rms(residual, x, weight, total, y, epsilon)
    return y, total


def _rms(x: Tensor, added: Tensor | None, weight: Tensor, total: Tensor | None, y: Tensor, epsilon: float) -> None:
    if y.numel():
        M = x.shape[-1]
        rows, more = _rows(x), None if added is None else _rows(added)
        rms[(rows.shape[0],)](
            rows, more, dense(weight), total, y, rows.stride(0), 0 if more is None else more.stride(0), M, epsilon,
            HAS_ADDED=more is not None, BLOCK=triton.next_power_of_2(M), **NORM_CONFIG, **FUSED,
        )  # fmt: skip


def gated_rms_norm(
    x: Tensor, z: Tensor, weight: Tensor | None, epsilon: float, groups: int, norm_before_gate: bool
) -> Tensor:
    """See longscan.kernels.gated_rms_norm."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        M = x.shape[-1] // groups
        x, z = _rows(x), _rows(z)
        gated_rms[(x.shape[0], groups)](
            x, z, dense(weight), y, x.stride(0), z.stride(0), M, groups, epsilon,
            HAS_WEIGHT=weight is not None, GATE_LAST=norm_before_gate, BLOCK=triton.next_power_of_2(M),
            **GATED_CONFIG, **FUSED,
        )  # fmt: skip
    return y


def inner_rms_norm(x: Tensor, rank: int, epsilon: float) -> Tensor:
    """See longscan.kernels.inner_rms_norm."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        N, rows = (x.shape[-1] - rank) // 2, _rows(x)
        block = triton.next_power_of_2(max(rank, N))
        inner_rms[(rows.shape[0], 3)](rows, y, rows.stride(0), rank, N, epsilon, BLOCK=block, **INNER_CONFIG, **FUSED)
    return y


def _rows(t: Tensor) -> Tensor:
    return dense_rows(t.reshape(-1, t.shape[-1]))
