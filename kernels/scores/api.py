"""The score by which decimation keeps tokens: arguments checked once, then handed to a backend.

Any mixture of the four floating-point dtypes is taken; delta decides: float64 is computed in float64, all else in
float32.

B batch   L tokens   D channels
"""

from __future__ import annotations

from torch import Tensor

from ..operators import public
from ..shared.arguments import floats, shape, tokens_seen
from ..shared.dispatch import module


@public
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

    Returns (B, L) float32. Raises ValueError as selective_scan.
    """
    given = floats(delta=delta, delta_bias=delta_bias, weight=weight)
    if delta.dim() != 3:
        raise ValueError(f"delta has shape {tuple(delta.shape)}, expected (B, L, D)")
    for name, t in (("delta_bias", delta_bias), ("weight", weight)):
        shape(name, t, (delta.shape[2],))
    tokens_seen(mask, "delta", delta)
    return module("scores", backend, given).token_scores(delta, delta_bias, delta_softplus, mask, weight)
