"""What the oracles share: the tokens at `index`, delta as the recurrence sees it, and what an unseen token adds.

delta_t = clamp(softplus(delta_t + bias), *delta_limit)
delta_t = scale delta_t where delta_t > threshold, else 0        (filter; NaN stays NaN)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import Scan


def gathered(given: Scan) -> tuple[Scan, Tensor | None]:
    """The scan of the tokens at `index` alone, and which of them are there (B, K), the others masked; without an index
    the scan itself, and None."""
    if given.index is None:
        return given, None
    present, places = given.index >= 0, given.index.clamp(min=0)
    rows = torch.arange(len(places), device=places.device)[:, None]
    x, delta, B, C = (t[rows, places] for t in (given.x, given.delta, given.B, given.C))
    z = None if given.z is None else given.z[rows, places]
    mask = present if given.mask is None else present & given.mask[rows, places]
    return given._replace(x=x, delta=delta, B=B, C=C, z=z, index=None, mask=mask), present


def absent_as_zero(y: Tensor, present: Tensor | None) -> Tensor:
    """y (B, K, ...) with zeros where `gathered` found no token."""
    return y if present is None else torch.where(present.reshape(*present.shape, *[1] * (y.dim() - 2)), y, 0.0)


def positive_delta(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """delta (..., D) after its bias and softplus."""
    if delta_bias is not None:
        delta = delta + delta_bias.to(delta.dtype)
    return F.softplus(delta) if delta_softplus else delta


def effective_delta(given: Scan, dtype: torch.dtype) -> Tensor:
    """delta (B, L, D), or (B, D) in a step, as the recurrence sees it: clamped first, so that a skipped token is 0."""
    delta = positive_delta(given.delta.to(dtype), given.delta_bias, given.delta_softplus).clamp(*given.delta_limit)
    kept = delta
    if given.scale is not None:
        kept = delta * _rows(given.scale, delta)
    if given.threshold is not None:
        g = _rows(given.threshold, delta)
        kept = torch.where(delta > g, kept, torch.where(delta <= g, 0.0, torch.nan))  # neither: one of them is NaN
    return kept if given.mask is None else torch.where(given.mask[:, :, None], kept, 0.0)


def _rows(per_channel: Tensor, delta: Tensor) -> Tensor:
    """(D,) or (B, D) -> broadcastable to delta."""
    return (per_channel if per_channel.dim() == 1 or delta.dim() == 2 else per_channel[:, None]).to(delta.dtype)


def unseen_as_zero(added: Tensor, B: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """What a scan adds to the state, (B, L, ...), with zeros where mask (B, L) is False: 0 times NaN is NaN."""
    if mask is None:
        return added, B
    seen = [mask.reshape(*mask.shape, *[1] * (t.dim() - 2)) for t in (added, B)]
    return torch.where(seen[0], added, 0.0), torch.where(seen[1], B, 0.0)
