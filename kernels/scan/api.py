"""Mamba-1's two functions: arguments checked once, then handed to a backend.

Any mixture of the four floating-point dtypes is taken. x decides: what goes with float64 is computed in float64, all
else in float32.

B batch   L tokens   K gathered tokens   D channels (d_inner)   N states
"""

from __future__ import annotations

from torch import Tensor

from ..operators import public
from ..shared.arguments import Scan, floats, positions, shape, state_of, tokens_seen
from ..shared.dispatch import module


@public
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
    index: (B, K) int64, ascending: only these positions are scanned; -1, anywhere, = absent (state untouched, y = 0)
    mask: (B, L) bool; False = delta 0, and the state untouched whatever x and B hold
    initial_state: (B, D, N); None = zeros

    Returns y (B, L or K, D) in the dtype of x, and the last state (B, D, N) float32 (float64 for float64 inputs).
    Raises ValueError on shapes, dtypes or devices that do not fit, an index out of range, an unknown backend, and where
    a gradient is asked of a backend other than the reference.
    """
    scan = Scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, index, mask, initial_state)
    given = floats(**scan.floating())
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, L, D)")
    if A.dim() != 2 or A.shape[0] != x.shape[2] or not A.shape[1]:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected ({x.shape[2]}, N) with N >= 1")
    _shapes(scan, x.shape[:2], *A.shape)
    tokens_seen(mask, "x", x)
    positions(index, x)
    return module("scan", backend, given).selective_scan(scan)


@public
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

    Returns y (B, D) in the dtype of x. Raises ValueError as selective_scan does, and if state requires a gradient.
    """
    scan = Scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale)
    given = floats(state=state, **scan.floating())
    state_of(x, state, "B, D, N")
    batch, channels, N = state.shape
    _shapes(scan, (batch,), channels, N)
    return module("scan", backend, given).selective_step(state, scan)


def _shapes(scan: Scan, leading: tuple[int, ...], channels: int, N: int) -> None:
    """Refuse what does not fit; leading: (B, L), of a step (B,)."""
    batch = leading[0]
    for name, t in (("x", scan.x), ("delta", scan.delta), ("z", scan.z)):
        shape(name, t, (*leading, channels))
    shape("A", scan.A, (channels, N))
    for name, t in (("B", scan.B), ("C", scan.C)):
        shape(name, t, (*leading, N))
    for name, t in (("D", scan.D), ("delta_bias", scan.delta_bias)):
        shape(name, t, (channels,))
    for name, t in (("threshold", scan.threshold), ("scale", scan.scale)):
        shape(name, t, (channels,), (batch, channels))
    shape("initial_state", scan.initial_state, (batch, channels, N))
