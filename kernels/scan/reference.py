"""The readable oracle: plain torch, any float dtype, one line an equation of `longscan.kernels.selective_scan`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.arguments import Scan
from ..shared.reference import absent_as_zero, effective_delta, gathered, unseen_as_zero


def selective_scan(given: Scan) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.selective_scan."""
    given, present = gathered(given)
    dtype = torch.promote_types(given.x.dtype, torch.float32)
    x, A, B, C = (t.to(dtype) for t in (given.x, given.A, given.B, given.C))
    delta = effective_delta(given, dtype)
    added, B = unseen_as_zero(delta * x, B, given.mask)
    start = given.initial_state
    h = x.new_zeros(x.shape[0], x.shape[2], A.shape[1]) if start is None else start.to(dtype)
    ys = []
    for t in range(x.shape[1]):
        a = torch.exp(delta[:, t, :, None] * A)
        h = a * h + added[:, t, :, None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1))
    y = finish(torch.stack(ys, 1) if ys else torch.zeros_like(x), x, given)
    return absent_as_zero(y, present).to(given.x.dtype), h.clone() if start is not None and not ys else h


def selective_step(state: Tensor, given: Scan) -> Tensor:
    """See longscan.kernels.selective_step; `state` (B, D, N) is updated in place."""
    x, A, B, C = (t.to(state.dtype) for t in (given.x, given.A, given.B, given.C))
    dt = effective_delta(given, state.dtype)
    state.mul_(torch.exp(dt[:, :, None] * A)).add_((dt * x)[:, :, None] * B[:, None, :])
    return finish(torch.einsum("bdn,bn->bd", state, C), x, given).to(given.x.dtype)


def finish(y: Tensor, x: Tensor, given: Scan) -> Tensor:
    """Skip and gate: (y + D x) silu(z)."""
    if given.D is not None:
        y = y + given.D.to(y.dtype) * x
    return y if given.z is None else y * F.silu(given.z.to(y.dtype))
