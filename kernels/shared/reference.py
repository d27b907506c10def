"""What the oracles share: delta as the recurrence sees it, with the filter, and what an unseen token adds.

delta_t = softplus(delta_t + bias)
delta_t = scale delta_t where delta_t > threshold, else 0        (filter; NaN stays NaN)
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
