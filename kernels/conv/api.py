"""The convolution before either family's scan: arguments checked once, then handed to a backend.

Any mixture of the four floating-point dtypes is taken; x decides, as in the scan.

B batch   L tokens   D channels   W conv width
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import public
from ..shared.arguments import floats, shape, tokens_seen
from ..shared.dispatch import module
from . import reference


@public
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Causal depthwise convolution and silu: y_t = silu(bias + sum_k weight_k x_{t-W+1+k}).

    x: (B, L, D), any strides; weight: (D, W); bias: (D,) or None
    initial_state: (B, D, W-1), the inputs before x, oldest first; None = zeros
    mask: (B, L) bool; the convolution sees 0 where False (left padding)

    Returns y (B, L, D) and the last W-1 inputs (B, D, W-1) in its dtype. Raises ValueError as selective_scan.
    """
    given = floats(x=x, weight=weight, bias=bias, initial_state=initial_state)
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, D)")
    batch, _, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or not weight.shape[1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected ({channels}, W) with W >= 1")
    shape("bias", bias, (channels,))
    shape("initial_state", initial_state, (batch, channels, weight.shape[1] - 1))
    tokens_seen(mask, "x", x)
    return module("conv", backend, given).causal_conv1d(x, weight, bias, initial_state, mask)


@public
def causal_conv1d_step(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *, backend: str = "auto"
) -> Tensor:
    """One token of the same convolution (decode).

    state: (B, D, W-1), the inputs before x, oldest first, any strides; updated in place
    x: (B, D); weight: (D, W); bias: (D,) or None

    Returns y (B, D) in the dtype of x. Raises ValueError as selective_step.
    """
    given = floats(state=state, x=x, weight=weight, bias=bias)
    if state.dim() != 3:
        raise ValueError(f"state has shape {tuple(state.shape)}, expected (B, D, W-1)")
    batch, channels, past = state.shape
    shape("x", x, (batch, channels))
    shape("weight", weight, (channels, past + 1))
    shape("bias", bias, (channels,))
    if torch.is_grad_enabled() and state.requires_grad:
        raise ValueError("state requires a gradient and is updated in place; give state.detach()")
    if torch.compiler.is_compiling():  # whose compiler fuses torch's operations itself
        return reference.causal_conv1d_step(state, x, weight, bias)
    return module("conv", backend, given[1:]).causal_conv1d_step(state, x, weight, bias)
