"""The readable oracle of the norms: plain torch, any float dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """weight x / sqrt(mean(x^2) + epsilon), in float32 at least; see longscan.kernels.rms_norm."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight.to(x.dtype)).to(dtype)


def add_rms_norm(
    residual: Tensor, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The norm of residual + x, and the sum; see longscan.kernels.add_rms_norm."""
    total = residual + x
    return rms_norm(total, weight, epsilon, dtype), total


def inner_rms_norm(x: Tensor, rank: int, epsilon: float) -> Tensor:
    """Each part of x over its own root mean square; see longscan.kernels.inner_rms_norm."""
    N = (x.shape[-1] - rank) // 2
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).split([rank, N, N], dim=-1)
    return torch.cat([v * torch.rsqrt(v.square().mean(-1, keepdim=True) + epsilon) for v in wide], -1).to(x.dtype)


def gated_rms_norm(
    x: Tensor, z: Tensor, weight: Tensor | None, epsilon: float, groups: int, norm_before_gate: bool
) -> Tensor:
    """x silu(z) over its RMS within each group, or the gate after the norm; see longscan.kernels.gated_rms_norm."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide, gate = x.to(dtype), F.silu(z.to(dtype))
    if weight is None:
        return (wide * gate).to(x.dtype)
    wide = wide if norm_before_gate else wide * gate
    by_group = wide.unflatten(-1, (groups, -1))
    normed = by_group * torch.rsqrt(by_group.square().mean(-1, keepdim=True) + epsilon)
    normed = normed.flatten(-2) * weight.to(dtype)
    return (normed * gate if norm_before_gate else normed).to(x.dtype)
