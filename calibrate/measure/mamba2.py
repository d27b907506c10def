"""Mamba-2, where a channel is a head: one A a head, B and C shared by a group of heads.

L tokens   H heads   G groups   N states
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_decay(delta: Tensor, A: Tensor) -> Tensor:
    """log exp(A_h sum_t delta_t): delta (..., L, H), A (H,) -> (..., H) float64."""
    return A.double() * delta.double().sum(-2)


def attention(after: Tensor, delta: Tensor, A: Tensor, B: Tensor, C_last: Tensor) -> Tensor:
    """Implicit attention of the last token, C . B_j exp(A_h sum_{k>j} delta_k) delta_j: (..., L, H).

    after, delta: (..., L, H), `after` the sum of delta behind each token; A (H,); B (..., L, G, N); C_last (..., G, N)
    """
    reads = (B * C_last[..., None, :, :]).sum(-1)  # the same in all heads of a group
    alike = reads.repeat_interleave(delta.shape[-1] // B.shape[-2], dim=-1)
    return alike * torch.exp(after * A) * delta


def of_channel(A: Tensor, B: Tensor, C: Tensor, channel: int) -> tuple[Tensor, Tensor, Tensor]:
    """A (N,), B (L, N), C (L, N) of one channel, of either family: from A (D, N) and B, C (L, N), or as above."""
    if A.dim() == 2:
        return A[channel], B, C
    group = channel // (A.shape[0] // B.shape[1])
    return A[channel].expand(B.shape[2]), B[:, group], C[:, group]
