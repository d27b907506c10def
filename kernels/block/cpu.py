"""A Mamba-1 block's step on the CPU: its weights as arrays, made once, then one call a token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..linear.cpu import stored
from ..shared.cpu_arrays import one_at_a_time, packed, rows
from . import cpu_loops


def mamba1_arrays(
    norm: Tensor,
    in_proj: tuple[Tensor, Tensor | None],
    conv: tuple[Tensor, Tensor | None],
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_proj: tuple[Tensor, Tensor | None],
) -> tuple[Any, ...]:
    """What `mamba1_step` needs of a block. The arrays are views that keep the tensors alive; small ones may be copies.

    norm (M,); in_proj, conv, out_proj: weight and bias; the projections contiguous, all float32 or all bfloat16
    """
    return (
        packed(norm), stored(in_proj[0]), packed(in_proj[1]), packed(conv[0], 2), packed(conv[1]),
        stored(x_proj), stored(dt_proj), packed(dt_bias), packed(A), packed(D), stored(out_proj[0]),
        packed(out_proj[1]),
    )  # fmt: skip


def mamba1_step(
    arrays: tuple[Any, ...],
    epsilon: float,
    residual: Tensor,
    conv: Tensor,
    state: Tensor,
    threshold: Tensor | None,
    scale: Tensor | None,
) -> None:
    """The block's step, unchecked: arrays of `mamba1_arrays`, epsilon of the norm, threshold and scale (D,) or (B, D).

    residual (B, M) float32, conv (B, D, W-1) float32, state (B, D, N) float32, contiguous, all three updated in place.
    """
    batch = residual.shape[0]
    with one_at_a_time:
        cpu_loops.mamba1(
            epsilon, residual.numpy(), conv.numpy(), state.numpy(), rows(threshold, batch), rows(scale, batch), *arrays
        )
