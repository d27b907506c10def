"""The readable oracle of Mamba-2: plain torch, any float dtype, one line an equation of `longscan.kernels.ssd_scan`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.arguments import Scan
from ..shared.reference import absent_as_zero, effective_delta, gathered, unseen_as_zero


def finish(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Skip and gate: (y + D x) silu(z). y, x, z (..., H, P); D (H,) or (H, P)."""
    if D is not None:
        y = y + (D if D.dim() == 2 else D[:, None]).to(y.dtype) * x
    return y if z is None else y * F.silu(z.to(y.dtype))


def ssd_scan(given: Scan) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.ssd_scan."""
    given, present = gathered(given)
    dtype = torch.promote_types(given.x.dtype, torch.float32)
    x, A = given.x.to(dtype), given.A.to(dtype)
    batch, steps, heads, P = x.shape
    shared = heads // given.B.shape[2]
    B, C = (t.to(dtype).repeat_interleave(shared, dim=2) for t in (given.B, given.C))
    delta = effective_delta(given, dtype)
    added, B = unseen_as_zero(delta[..., None] * x, B, given.mask)
    start = given.initial_state
    h = x.new_zeros(batch, heads, P, B.shape[3]) if start is None else start.to(dtype)
    ys = []
    for t in range(steps):
        a = torch.exp(delta[:, t] * A)
        h = a[:, :, None, None] * h + added[:, t, ..., None] * B[:, t, :, None]
        ys.append((h * C[:, t, :, None]).sum(-1))
    y = finish(torch.stack(ys, 1) if ys else torch.zeros_like(x), x, given.D, given.z)
    return absent_as_zero(y, present).to(given.x.dtype), h.clone() if start is not None and not ys else h


def ssd_step(state: Tensor, given: Scan) -> Tensor:
    """See longscan.kernels.ssd_step; `state` (B, H, P, N) is updated in place."""
    dtype = state.dtype
    dt = effective_delta(given, dtype)
    shared = given.x.shape[1] // given.B.shape[1]
    B, C = (t.to(dtype).repeat_interleave(shared, dim=1) for t in (given.B, given.C))
    x = given.x.to(dtype)
    state.mul_(torch.exp(dt * given.A.to(dtype))[:, :, None, None])
    state.add_((dt[:, :, None] * x)[..., None] * B[:, :, None])
    y = torch.matmul(state, C[..., None])[..., 0]
    return finish(y, x, given.D, given.z).to(given.x.dtype)
