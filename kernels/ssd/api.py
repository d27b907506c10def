"""Mamba-2's two functions: arguments checked once, then handed to a backend.

B batch   L tokens   K gathered tokens   H heads   P channels a head   G groups   N states
"""

from __future__ import annotations

import math

from torch import Tensor

from ..operators import public
from ..shared.arguments import Scan, floats, limits, positions, shape, state_of, tokens_seen
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
    scan = Scan(
        x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, index, mask, initial_state, delta_limit
    )
    given = floats(**scan.floating())
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, H, P)")
    _shapes(scan, x.shape[:2], x.shape[2], x.shape[3], None)
    tokens_seen(mask, "x", x)
    positions(index, x)
    return module("ssd", backend, given).ssd_scan(scan)


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
    scan = Scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, delta_limit=delta_limit)
    given = floats(state=state, **scan.floating())
    state_of(x, state, "B, H, P, N")
    batch, heads, P, N = state.shape
    _shapes(scan, (batch,), heads, P, N)
    return module("ssd", backend, given).ssd_step(state, scan)


def _shapes(scan: Scan, leading: tuple[int, ...], heads: int, P: int, N: int | None) -> None:
    """Refuse what does not fit; leading: (B, L), of a step (B,); N: of the state, None: any from 1 on."""
    limits(scan.delta_limit)
    batch, B = leading[0], scan.B
    for name, t in (("x", scan.x), ("z", scan.z)):
        shape(name, t, (*leading, heads, P))
    shape("delta", scan.delta, (*leading, heads))
    if B.dim() != len(leading) + 2 or not B.shape[-2] or heads % B.shape[-2] or (N is None and not B.shape[-1]):
        wanted = ", ".join(map(str, (*leading, "G", "N" if N is None else N)))
        at_least = " and N >= 1" if N is None else ""
        raise ValueError(f"B has shape {tuple(B.shape)}, expected ({wanted}) with G a divisor of {heads}{at_least}")
    N = B.shape[-1] if N is None else N
    for name, t in (("B", scan.B), ("C", scan.C)):
        shape(name, t, (*leading, B.shape[-2], N))
    for name, t in (("A", scan.A), ("delta_bias", scan.delta_bias)):
        shape(name, t, (heads,))
    shape("D", scan.D, (heads,), (heads, P))
    for name, t in (("threshold", scan.threshold), ("scale", scan.scale)):
        shape(name, t, (heads,), (batch, heads))
    shape("initial_state", scan.initial_state, (batch, heads, P, N))
