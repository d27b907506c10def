"""The convolution before either family's scan: arguments checked once, then handed to a backend.

Any mixture of the four floating-point dtypes is taken; x decides, as in the scan.

B batch   L tokens   D channels   W conv width
"""

from __future__ import annotations

from torch import Tensor

from ..shared.arguments import floats, public, shape, tokens_seen
from ..shared.dispatch import module


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
