"""The four functions of the package: arguments checked once, then handed to a backend.

B batch   L tokens   K gathered tokens   D channels (d_inner)   N states   W conv width
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import module


def _expect(name: str, t: Tensor | None, *shapes: tuple[int, ...]) -> None:
    if t is not None and tuple(t.shape) not in shapes:
        wanted = " or ".join(str(s) for s in shapes)
        raise ValueError(f"{name} has shape {tuple(t.shape)}, expected {wanted}")


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    threshold: Tensor | None = None,
    scale: Tensor | None = None,
    index: Tensor | None = None,
    mask: Tensor | None = None,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Mamba-1's selective scan (arXiv 2312.00752, eq. 2), filtered and gathered.

        delta_t = softplus(delta_t + delta_bias)
        delta_t = scale delta_t where delta_t > threshold and mask, else 0      LongMamba's filter, strict >
        h_t     = exp(delta_t A) h_{t-1} + delta_t x_t B_t
        y_t     = (h_t . C_t + D x_t) silu(z_t)

    x, delta, z: (B, L, D) float16, bfloat16, float32 or float64; any strides
    A: (D, N), negative; B, C: (B, L, N); D, delta_bias: (D,)
    threshold, scale: (D,) or (B, D) float32; None: no filter, factor 1
    index: (B, K) int64, ascending: only these positions are scanned; -1 = absent (state untouched, y = 0)
    mask: (B, L) bool; False = delta 0
    initial_state: (B, D, N); None = zeros

    Returns y (B, L or K, D) in the dtype of x, and the last state (B, D, N) float32 (float64 for float64 inputs).
    Raises ValueError on shapes or dtypes that do not fit, and for an unknown backend.
    """
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"x must be (B, L, D) floating point, found {tuple(x.shape)} {x.dtype}")
    batch, L, channels = x.shape
    _expect("delta", delta, (batch, L, channels))
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected ({channels}, N)")
    N = A.shape[1]
    _expect("B", B, (batch, L, N))
    _expect("C", C, (batch, L, N))
    _expect("D", D, (channels,))
    _expect("z", z, (batch, L, channels))
    _expect("delta_bias", delta_bias, (channels,))
    _expect("threshold", threshold, (channels,), (batch, channels))
    _expect("scale", scale, (channels,), (batch, channels))
    _expect("mask", mask, (batch, L))
    _expect("initial_state", initial_state, (batch, channels, N))
    if index is not None and (index.dim() != 2 or index.shape[0] != batch or index.dtype != torch.int64):
        raise ValueError(f"index must be ({batch}, K) int64, found {tuple(index.shape)} {index.dtype}")
    _expect_bool(mask)
    return module(backend, x).selective_scan(
        x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, index, mask, initial_state
    )


def _expect_bool(mask: Tensor | None) -> None:
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, found {mask.dtype}; use mask.bool()")


def selective_step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    threshold: Tensor | None = None,
    scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """One token of the same recurrence (decode).

    state: (B, D, N) float32 (float64 for float64 models), contiguous, updated in place
    x, delta, z: (B, D); A: (D, N); B, C: (B, N); D, delta_bias: (D,); threshold, scale: (D,) or (B, D)

    Returns y (B, D) in the dtype of x. Raises ValueError on shapes that do not fit.
    """
    batch, channels, N = state.shape
    for name, t in (("x", x), ("delta", delta), ("z", z)):
        _expect(name, t, (batch, channels))
    _expect("A", A, (channels, N))
    for name, t in (("B", B), ("C", C)):
        _expect(name, t, (batch, N))
    for name, t in (("D", D), ("delta_bias", delta_bias)):
        _expect(name, t, (channels,))
    for name, t in (("threshold", threshold), ("scale", scale)):
        _expect(name, t, (channels,), (batch, channels))
    if not state.is_contiguous():
        raise ValueError("state must be contiguous: it is updated in place")
    return module(backend, state).selective_step(
        state, x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale
    )


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

    Returns y (B, L, D) in the dtype of x and the last W-1 inputs (B, D, W-1). Raises ValueError on wrong shapes.
    """
    if x.dim() != 3:
        raise ValueError(f"x must be (B, L, D), found {tuple(x.shape)}")
    batch, L, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected ({channels}, W)")
    _expect("bias", bias, (channels,))
    _expect("initial_state", initial_state, (batch, channels, weight.shape[1] - 1))
    _expect("mask", mask, (batch, L))
    _expect_bool(mask)
    return module(backend, x).causal_conv1d(x, weight, bias, initial_state, mask)


def token_scores(
    delta: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """DeciMamba's score of each token (arXiv 2406.14528): sqrt(sum_d weight_d delta_d^2).

    delta: (B, L, D), scored after bias and softplus; mask: (B, L), False scores 0
    delta_bias, weight: (D,); weight None = 1, the published L2 norm

    Returns (B, L) float32. Raises ValueError on wrong shapes.
    """
    if delta.dim() != 3:
        raise ValueError(f"delta must be (B, L, D), found {tuple(delta.shape)}")
    for name, t in (("delta_bias", delta_bias), ("weight", weight)):
        _expect(name, t, (delta.shape[2],))
    _expect("mask", mask, tuple(delta.shape[:2]))
    _expect_bool(mask)
    return module(backend, delta).token_scores(delta, delta_bias, delta_softplus, mask, weight)
