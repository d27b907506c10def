"""The readable oracle of the convolution: plain torch, any float dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def causal_conv1d_step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu(bias + weight . (state, x)), the state moved on by x; see longscan.kernels.causal_conv1d_step."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    window = torch.cat([state.to(x.dtype), x[:, :, None]], 2)
    state.copy_(window[:, :, 1:])
    y = (window.to(dtype) * weight.to(dtype)).sum(-1)
    y = y if bias is None else y + bias.to(dtype)
    return F.silu(y).to(x.dtype)
