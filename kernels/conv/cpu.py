"""The convolution on the CPU: tensors in, a numba loop, tensors out. float32 inside, whatever the inputs' dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.cpu_arrays import array, mask_array, one_at_a_time, packed
from . import cpu_loops


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.causal_conv1d."""
    (batch, L, channels), W = x.shape, weight.shape[1]
    if initial_state is None:
        before = torch.zeros(batch, W - 1, channels, dtype=x.dtype)
    else:
        before = initial_state.transpose(1, 2).to(x.dtype)
    y = torch.empty(batch, L, channels, dtype=torch.float32)
    shift = torch.zeros(channels, dtype=torch.float32) if bias is None else bias
    with one_at_a_time:
        cpu_loops.conv(array(x), packed(weight.T), packed(shift), packed(before), mask_array(mask), y.numpy())
    tail = x[:, max(0, L - (W - 1)) :]
    if mask is not None:
        tail = torch.where(mask[:, max(0, L - (W - 1)) :, None], tail, 0.0)
    last = torch.cat([before, tail], 1)[:, tail.shape[1] :]
    return y.to(x.dtype), last.transpose(1, 2).contiguous()


def causal_conv1d_step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See longscan.kernels.causal_conv1d_step."""
    y = torch.empty(x.shape, dtype=torch.float32)
    wide = state.detach().to(x.dtype).float()  # as a state of many tokens is read; the state itself if it is float32
    cpu_loops.step(wide.numpy(), array(x), array(weight, 2), packed(bias), y.numpy())
    if wide.data_ptr() != state.data_ptr():
        state.copy_(wide)
    return y.to(x.dtype)
