"""Mamba-2's two functions: arguments checked once, then handed to a backend.

B batch   L tokens   K gathered tokens   H heads   P channels a head   G groups   N states
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..operators import register
from ..shared.arguments import floats, limits, positions, public, shape, state_of, tokens_seen
from ..shared.dispatch import module


@public
def ssd_scan(
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
    delta_limit: tuple[float, float] = (0.0, math.inf),
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Mamba-2's scan (state-space duality, arXiv 2405.21060), filtered and gathered: one decay and delta a head.

        delta_t = clamp(softplus(delta_t + delta_bias), *delta_limit)
        delta_t = scale delta_t where delta_t > threshold and mask, else 0      LongMamba's filter, strict >
        h_t     = exp(delta_t A) h_{t-1} + delta_t x_t (x) B_t
        y_t     = (h_t . C_t + D x_t) silu(z_t)

    x, z: (B, L, H, P), delta: (B, L, H), float16, bfloat16, float32 or float64; any strides
    A: (H,), negative; B, C: (B, L, G, N), H a multiple of G; D: (H,) or (H, P); delta_bias: (H,)
    threshold, scale: (H,) or (B, H) float32; None: no filter, factor 1
    index: (B, K) int64, ascending: only these positions are scanned; -1, anywhere, = absent (state untouched, y = 0)
    mask: (B, L) bool; False = delta 0, and the state untouched whatever x and B hold
    initial_state: (B, H, P, N); None = zeros
    delta_limit: the model's time_step_limit, applied before the filter

    Returns y (B, L or K, H, P) in the dtype of x, and the last state (B, H, P, N) float32 (float64 for float64 inputs).
    Raises ValueError as selective_scan does.
    """
    if torch.compiler.is_compiling():
        return _operators["ssd_scan"](
            x,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            delta_softplus,
            threshold,
            scale,
            index,
            mask,
            initial_state,
            delta_limit,
            backend,
        )
    given = floats(
        x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, threshold=threshold, scale=scale,
        initial_state=initial_state,
    )  # fmt: skip
    limits(delta_limit)
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, H, P)")
    batch, L, heads, P = x.shape
    shape("delta", delta, (batch, L, heads))
    shape("A", A, (heads,))
    if B.dim() != 4 or not B.shape[2] or heads % B.shape[2] or not B.shape[3]:
        raise ValueError(
            f"B has shape {tuple(B.shape)}, expected ({batch}, {L}, G, N) with G a divisor of {heads} and N >= 1"
        )
    groups, N = B.shape[2:]
    for name, t in (("B", B), ("C", C)):
        shape(name, t, (batch, L, groups, N))
    shape("D", D, (heads,), (heads, P))
    shape("z", z, (batch, L, heads, P))
    shape("delta_bias", delta_bias, (heads,))
    shape("threshold", threshold, (heads,), (batch, heads))
    shape("scale", scale, (heads,), (batch, heads))
    shape("initial_state", initial_state, (batch, heads, P, N))
    tokens_seen(mask, "x", x)
    positions(index, x)
    return module("ssd", backend, given).ssd_scan(
        x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, index, mask, initial_state, delta_limit
    )


@public
def ssd_step(
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
    delta_limit: tuple[float, float] = (0.0, math.inf),
    backend: str = "auto",
) -> Tensor:
    """One token of the same recurrence (decode).

    state: (B, H, P, N) float32 (float64 for float64 models), contiguous, updated in place
    x, z: (B, H, P); delta: (B, H); A, delta_bias: (H,); B, C: (B, G, N); D: (H,) or (H, P)
    threshold, scale: (H,) or (B, H)

    Returns y (B, H, P) in the dtype of x. Raises ValueError as selective_step does.
    """
    if torch.compiler.is_compiling():
        return _operators["ssd_step"](
            state, x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, delta_limit, backend
        )
    given = floats(
        state=state, x=x, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, threshold=threshold, scale=scale
    )
    limits(delta_limit)
    state_of(x, state, "B, H, P, N")
    batch, heads, P, N = state.shape
    for name, t in (("x", x), ("z", z)):
        shape(name, t, (batch, heads, P))
    shape("delta", delta, (batch, heads))
    if B.dim() != 3 or not B.shape[1] or heads % B.shape[1]:
        raise ValueError(f"B has shape {tuple(B.shape)}, expected ({batch}, G, {N}) with G a divisor of {heads}")
    for name, t in (("B", B), ("C", C)):
        shape(name, t, (batch, B.shape[1], N))
    for name, t in (("A", A), ("delta_bias", delta_bias)):
        shape(name, t, (heads,))
    shape("D", D, (heads,), (heads, P))
    for name, t in (("threshold", threshold), ("scale", scale)):
        shape(name, t, (heads,), (batch, heads))
    return module("ssd", backend, given).ssd_step(
        state, x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, delta_limit
    )


_operators = {
    function.__name__: register(function)
    for function in (
        ssd_scan,
        ssd_step,
    )
}
