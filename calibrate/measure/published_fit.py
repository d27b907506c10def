"""LongMamba's g(S) exactly as published, for one calibration sequence (arXiv 2504.16053; methods in docs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clamp_top(delta: Tensor, C: float) -> Tensor:
    """Clamp each channel of delta (L, D) at its max(1, int(L C))-th largest value."""
    nth = max(1, int(delta.shape[0] * C))
    cap = delta.topk(nth, dim=0).values[-1]
    return torch.minimum(delta, cap)


def published_g(delta: Tensor, S: int, C: float | None) -> Tensor:
    """g(S) of every channel from one sequence: delta (L, D) -> (D,).

    clamp; target = sum(delta); stretch the descending curve to S points (linear, align_corners=False);
    k = (first index whose cumsum exceeds the target) + 1, at most S - 1; g = stretched[k]. 0 where the target is
    never exceeded or S <= L (the released code keeps one token there).
    """
    L = delta.shape[0]
    delta = delta.double()
    if S <= L:
        return delta.new_zeros(delta.shape[1])
    if C is not None:
        delta = clamp_top(delta, C)
    target = delta.sum(0)  # (D,)
    ordered = delta.sort(dim=0, descending=True).values
    stretched = F.interpolate(ordered.T[None], size=S, mode="linear", align_corners=False)[0]  # (D, S)
    exceeds = stretched.cumsum(1) > target[:, None]
    k = (exceeds.long().argmax(1) + 1).clamp(max=S - 1)
    g = stretched.gather(1, k[:, None])[:, 0]
    return torch.where(exceeds.any(1), g, 0.0)
