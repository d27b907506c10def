"""Mamba-2's scan for training: matrices over chunks (Dao & Gu 2024, section 6), differentiated by torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16  # the fastest of 16, 32 and 64 on a CPU with 16 heads of 8


def ssd(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int = CHUNK) -> Tensor:
    """x (B, L, H, P), delta (B, L, H), A (H,), B and C (B, L, N) -> y (B, L, H, P), from a zero state.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t', y_t = C_t h_t: within a chunk a lower triangular matrix a head
    acts on x; between chunks the states (N, H P) are carried one after the other.
    """
    _, length, H, P = x.shape
    pad = -length % chunk  # delta 0 leaves the state as it is
    x, B, C = F.pad(x, (0, 0, 0, 0, 0, pad)), F.pad(B, (0, 0, 0, pad)), F.pad(C, (0, 0, 0, pad))
    delta = F.pad(delta, (0, 0, 0, pad))
    x = (x * delta[..., None]).unflatten(1, (-1, chunk))  # (B, K, Q, H, P)
    B, C = B.unflatten(1, (-1, chunk)), C.unflatten(1, (-1, chunk))  # (B, K, Q, N)
    total = (delta * A).unflatten(1, (-1, chunk)).cumsum(2)  # log decay since the chunk's start, (B, K, Q, H)

    by_head = total.transpose(2, 3)  # (B, K, H, Q)
    future = torch.ones(chunk, chunk, dtype=torch.bool).triu(1)
    decay = (by_head[..., :, None] - by_head[..., None, :]).masked_fill_(future, -torch.inf).exp()
    within = (decay * (C @ B.transpose(2, 3))[:, :, None]) @ x.transpose(2, 3)  # (B, K, H, Q, P)

    left = (total[:, :, -1:] - total).exp()  # decay from a token to the chunk's end
    ends = B.transpose(2, 3) @ (x * left[..., None]).flatten(3)  # (B, K, N, H P)
    kept = total[:, :, -1].exp().repeat_interleave(P, dim=2)[:, :, None]  # (B, K, 1, H P)
    state, starts = torch.zeros_like(ends[:, 0]), []
    for decayed, end in zip(kept.unbind(1), ends.unbind(1)):  # not [:, k], whose gradient is as large as all chunks
        starts.append(state)
        state = torch.addcmul(end, state, decayed)
    carried = (C @ torch.stack(starts, 1)).unflatten(3, (H, P)) * total.exp()[..., None]
    return (within.transpose(2, 3) + carried).flatten(1, 2)[:, :length]
