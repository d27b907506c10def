"""The readable oracle: plain torch, any float dtype, one line an equation.

B batch   L tokens   K gathered tokens   D channels   N states

delta_t = softplus(delta_t + bias)                      (B, D)
delta_t = scale delta_t where delta_t > threshold, else 0        (filter; NaN stays NaN)
h_t     = exp(delta_t A) h_{t-1} + delta_t x_t B_t      (B, D, N)
y_t     = (h_t . C_t + D x_t) silu(z_t)                 (B, D)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.reference import effective_delta, unseen_as_zero


def gather(t: Tensor, index: Tensor) -> Tensor:
    """t (B, L, F), index (B, K) with -1 = absent -> (B, K, F)."""
    return t.gather(1, index.clamp(min=0)[:, :, None].expand(-1, -1, t.shape[2]))


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    threshold: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    mask: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.selective_scan."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    out_dtype, present = x.dtype, None
    if index is not None:
        present = index >= 0
        mask = present if mask is None else present & mask.gather(1, index.clamp(min=0))
        x, delta, B, C = (gather(t, index) for t in (x, delta, B, C))
        z = None if z is None else gather(z, index)
    x, delta, A, B, C = (t.to(dtype) for t in (x, delta, A, B, C))
    delta = effective_delta(delta, delta_bias, delta_softplus, threshold, scale, mask)
    added, B = unseen_as_zero(delta * x, B, mask)
    h = x.new_zeros(x.shape[0], x.shape[2], A.shape[1]) if initial_state is None else initial_state.to(dtype)
    ys = []
    for t in range(x.shape[1]):
        a = torch.exp(delta[:, t, :, None] * A)
        h = a * h + added[:, t, :, None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1))
    y = torch.stack(ys, 1) if ys else torch.zeros_like(x)
    y = y if D is None else y + D.to(dtype) * x
    y = y if z is None else y * F.silu(z.to(dtype))
    if present is not None:
        y = torch.where(present[:, :, None], y, 0.0)
    return y.to(out_dtype), h.clone() if initial_state is not None and not ys else h


def selective_step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    threshold: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """See longscan.kernels.selective_step; `state` (B, D, N) is updated in place."""
    dtype = state.dtype
    wide = delta[:, None].to(dtype)
    dt = effective_delta(wide, delta_bias, delta_softplus, threshold, scale, None)[:, 0]
    a = torch.exp(dt[:, :, None] * A.to(dtype))
    state.mul_(a).add_((dt * x.to(dtype))[:, :, None] * B.to(dtype)[:, None, :])
    y = torch.einsum("bdn,bn->bd", state, C.to(dtype))
    y = y if D is None else y + D.to(dtype) * x.to(dtype)
    y = y if z is None else y * F.silu(z.to(dtype))
    return y.to(x.dtype)
