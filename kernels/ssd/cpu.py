"""Mamba-2's scan on the CPU: chunks of the sequence as matrix products, states carried from chunk to chunk.

Inside a chunk of Q tokens, with s_t the sum of delta A over its first t tokens (arXiv 2405.21060, section 6):

    y_t = sum_{j <= t} (C_t . B_j) exp(s_t - s_j) delta_j x_j  +  exp(s_t) C_t . h        within the chunk, from before
    h'  = exp(s_Q) h + sum_j exp(s_Q - s_j) delta_j x_j (x) B_j                            what the next chunk starts at

The sums are float64: differences of large sums must keep the digits of small decays. Everything else is float32.
A product spreads NaN and infinity over its chunk, as 0 times either is NaN; there the oracle reads token by token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.arguments import Scan
from ..shared.reference import absent_as_zero, effective_delta, gathered, unseen_as_zero
from . import reference
from .reference import finish, ssd_step

__all__ = ["ssd_scan", "ssd_step"]

CHUNK = 64


def ssd_scan(given: Scan) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.ssd_scan."""
    given, present = gathered(given)
    x, A, C, D, z = given.x, given.A, given.C, given.D, given.z
    batch, steps, heads, P = x.shape
    groups, N = given.B.shape[2:]
    delta = effective_delta(given, torch.float32)
    decay = delta.double() * A.double()
    added, B = unseen_as_zero(x, given.B, given.mask)
    h = x.new_zeros(batch, heads, P, N, dtype=torch.float32)
    if given.initial_state is not None:
        h.copy_(given.initial_state)
    y = torch.empty(batch, steps, heads, P, dtype=torch.float32)
    for start in range(0, steps, CHUNK):
        part = slice(start, min(start + CHUNK, steps))
        x_part = x[:, part].float()
        # (B, G, H/G, Q, ...): heads in groups, so that a group's B and C are multiplied once
        gB, gC = (t[:, part].float().transpose(1, 2) for t in (B, C))  # (B, G, Q, N)
        dx = _by_group(delta[:, part, :, None] * added[:, part].float(), groups)
        s = _by_group(decay[:, part].cumsum(1), groups)  # (B, G, H/G, Q)
        gap = (s[..., :, None] - s[..., None, :]).float()
        Q = gap.shape[-1]
        gap.masked_fill_(torch.ones(Q, Q, dtype=torch.bool).triu(1), -torch.inf)
        within = gap.exp_().mul_((gC @ gB.transpose(-1, -2))[:, :, None])
        before = h.view(batch, groups, heads // groups, P, N)
        out = within @ dx
        out += s.float().exp()[..., None] * (gC[:, :, None] @ before.transpose(-1, -2))
        left = (s[..., -1:] - s).float().exp()[..., None]
        inner = (left * dx).transpose(-1, -2) @ gB[:, :, None]
        after = (s[..., -1].float().exp()[..., None, None] * before + inner).view(batch, heads, P, N)
        out = out.flatten(1, 2).transpose(1, 2)
        if not _finite(out):
            out, after = reference.ssd_scan(
                Scan(
                    added[:, part].float(), delta[:, part], A, B[:, part], C[:, part], D=None, z=None, delta_bias=None,
                    delta_softplus=False, threshold=None, scale=None, initial_state=h,
                )
            )  # fmt: skip
        y[:, part], h = finish(out, x_part, D, None if z is None else z[:, part]), after
    return absent_as_zero(y, present).to(x.dtype), h


def _finite(t: Tensor) -> bool:
    """Whether no value is NaN or infinite, without a tensor of answers."""
    return not t.numel() or all(v.isfinite() for v in t.aminmax())


def _by_group(t: Tensor, groups: int) -> Tensor:
    """(B, Q, H, ...) -> (B, G, H/G, Q, ...)."""
    return t.transpose(1, 2).unflatten(1, (groups, t.shape[2] // groups)).contiguous()
