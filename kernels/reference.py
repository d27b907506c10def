"""The readable oracle: plain torch, any float dtype, one line an equation.

B batch   L tokens   K gathered tokens   D channels   N states   W conv width

delta_t = softplus(delta_t + bias)                      (B, D)
delta_t = scale delta_t where delta_t > threshold, else 0        (filter; NaN stays NaN)
h_t     = exp(delta_t A) h_{t-1} + delta_t x_t B_t      (B, D, N)
y_t     = (h_t . C_t + D x_t) silu(z_t)                 (B, D)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_delta(
    delta: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    threshold: Tensor | None,
    scale: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """delta (B, L, D) as the recurrence sees it. threshold, scale (D,) or (B, D); mask (B, L)."""
    if delta_bias is not None:
        delta = delta + delta_bias.to(delta.dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    kept = delta
    if scale is not None:
        kept = delta * _rows(scale, delta)
    if threshold is not None:
        g = _rows(threshold, delta)
        kept = torch.where(delta > g, kept, torch.where(delta <= g, 0.0, torch.nan))  # neither: one of them is NaN
    return kept if mask is None else torch.where(mask[:, :, None], kept, 0.0)


def _rows(per_channel: Tensor, delta: Tensor) -> Tensor:
    """(D,) or (B, D) -> broadcastable to (B, L, D)."""
    return (per_channel if per_channel.dim() == 1 else per_channel[:, None]).to(delta.dtype)


def unseen_as_zero(added: Tensor, B: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a scan adds to the state, (B, L, ...), with zeros where mask (B, L) is False: 0 times NaN is NaN."""
    if mask is None:
        return added, B
    seen = [mask.reshape(*mask.shape, *[1] * (t.dim() - 2)) for t in (added, B)]
    return torch.where(seen[0], added, 0.0), torch.where(seen[1], B, 0.0)


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


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """silu(bias + sum_k weight_k x_{t-W+1+k}) and the last W-1 inputs; see longscan.kernels.causal_conv1d."""
    W = weight.shape[1]
    inputs = x if mask is None else torch.where(mask[:, :, None], x, 0.0)
    before = x.new_zeros(x.shape[0], W - 1, x.shape[2]) if initial_state is None else initial_state.transpose(1, 2)
    padded = torch.cat([before.to(x.dtype), inputs], 1)
    dtype = torch.promote_types(x.dtype, torch.float32)
    L = x.shape[1]
    taps = (padded[:, k : k + L].to(dtype) * weight[:, k].to(dtype) for k in range(W))
    y = sum(taps, start=padded.new_zeros((), dtype=dtype))
    y = y if bias is None else y + bias.to(dtype)
    last = padded[:, padded.shape[1] - (W - 1) :].transpose(1, 2).contiguous()
    return F.silu(y).to(x.dtype), last


def token_scores(
    delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    """sqrt(sum_d weight_d delta_d^2); see longscan.kernels.token_scores."""
    delta = delta.to(torch.promote_types(delta.dtype, torch.float32))
    delta = effective_delta(delta, delta_bias, delta_softplus, None, None, None)
    square = delta.square() if weight is None else delta.square() * weight.to(delta.dtype)
    score = square.sum(-1).sqrt().float()
    return score if mask is None else torch.where(mask, score, 0.0)
