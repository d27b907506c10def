"""The readable oracle of Mamba-2's scan: plain torch, any float dtype, one line an equation.

B batch   L tokens   K gathered tokens   H heads   P channels a head   G groups of heads that share B and C   N states

delta_t = clamp(softplus(delta_t + bias), *delta_limit)                    (B, H)
delta_t = scale delta_t where delta_t > threshold, else 0        (filter)
h_t     = exp(delta_t A) h_{t-1} + delta_t x_t (x) B_t                     (B, H, P, N)
y_t     = (h_t . C_t + D x_t) silu(z_t)                                    (B, H, P)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.reference import effective_delta, unseen_as_zero

Limit = tuple[float, float]


def head_delta(
    delta: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    limit: Limit,
    threshold: Tensor | None,
    scale: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """delta (B, L, H) as the recurrence sees it: clamped first, so that a skipped token is exactly 0."""
    delta = effective_delta(delta, delta_bias, delta_softplus, None, None, None).clamp(*limit)
    return effective_delta(delta, None, False, threshold, scale, mask)


def gather(t: Tensor, index: Tensor) -> Tensor:
    """t (B, L, ...), index (B, K) with -1 = absent -> (B, K, ...)."""
    rows = torch.arange(t.shape[0], device=t.device)[:, None]
    return t[rows, index.clamp(min=0)]


def finish(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Skip and gate: (y + D x) silu(z). y, x, z (..., H, P); D (H,) or (H, P)."""
    if D is not None:
        y = y + (D if D.dim() == 2 else D[:, None]).to(y.dtype) * x
    return y if z is None else y * F.silu(z.to(y.dtype))


def ssd_scan(
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
    delta_limit: Limit,
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.ssd_scan."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    out_dtype, present = x.dtype, None
    if index is not None:
        present = index >= 0
        mask = present if mask is None else present & mask.gather(1, index.clamp(min=0))
        x, delta, B, C = (gather(t, index) for t in (x, delta, B, C))
        z = None if z is None else gather(z, index)
    x, delta, A = x.to(dtype), delta.to(dtype), A.to(dtype)
    batch, steps, heads, _ = x.shape
    shared = heads // B.shape[2]
    B, C = (t.to(dtype).repeat_interleave(shared, dim=2) for t in (B, C))
    delta = head_delta(delta, delta_bias, delta_softplus, delta_limit, threshold, scale, mask)
    added, B = unseen_as_zero(delta[..., None] * x, B, mask)
    h = x.new_zeros(batch, heads, x.shape[3], B.shape[3]) if initial_state is None else initial_state.to(dtype)
    ys = []
    for t in range(steps):
        a = torch.exp(delta[:, t] * A)
        h = a[:, :, None, None] * h + added[:, t, ..., None] * B[:, t, :, None]
        ys.append((h * C[:, t, :, None]).sum(-1))
    y = finish(torch.stack(ys, 1) if ys else torch.zeros_like(x), x, D, z)
    if present is not None:
        y = torch.where(present[:, :, None, None], y, 0.0)
    return y.to(out_dtype), h.clone() if initial_state is not None and not ys else h


def ssd_step(
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
    delta_limit: Limit,
) -> Tensor:
    """See longscan.kernels.ssd_step; `state` (B, H, P, N) is updated in place."""
    dtype = state.dtype
    wide = delta[:, None].to(dtype)
    dt = head_delta(wide, delta_bias, delta_softplus, delta_limit, threshold, scale, None)[:, 0]
    shared = x.shape[1] // B.shape[1]
    B, C = (t.to(dtype).repeat_interleave(shared, dim=1) for t in (B, C))
    wide_x = x.to(dtype)
    state.mul_(torch.exp(dt * A.to(dtype))[:, :, None, None])
    state.add_((dt[:, :, None] * wide_x)[..., None] * B[:, :, None])
    y = torch.matmul(state, C[..., None])[..., 0]
    return finish(y, wide_x, D, z).to(x.dtype)
