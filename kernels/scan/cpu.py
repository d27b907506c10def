"""The scan on the CPU: tensors in, numba loops, tensors out. float32 inside, whatever the inputs' dtype."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..shared.arguments import Scan
from ..shared.cpu_arrays import array, mask_array, one_at_a_time, packed, rows, rows_of_vectors
from . import cpu_loops, reference
from .cpu_vector import LANES


def _may_grow(given: Scan) -> bool:
    """Whether exp(delta A) may exceed 1: a negative A and a positive delta, the model's, never do."""
    if (given.A > 0).any() or (given.scale is not None and (given.scale < 0).any()):
        return True
    delta = given.delta if given.delta_bias is None else given.delta + given.delta_bias
    return not given.delta_softplus and bool((delta < 0).any())


def selective_scan(given: Scan) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.selective_scan."""
    if _may_grow(given):  # the loops below know 2^x for x <= 0 only
        return reference.selective_scan(given)
    x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, index, mask, initial_state, _ = given
    batch, L, channels = x.shape
    steps = L if index is None else index.shape[1]
    pad = -channels % LANES  # real models have none
    y = torch.empty(batch, steps, channels + pad, dtype=torch.float32)
    state = torch.zeros(batch, channels + pad, A.shape[1], dtype=torch.float32)
    if initial_state is not None:
        state[:, :channels] = initial_state
    if pad:
        A = F.pad(A, (0, 0, 0, pad))
        D, delta_bias, threshold, scale = (
            None if t is None else F.pad(t, (0, pad)) for t in (D, delta_bias, threshold, scale)
        )
    places = np.empty((0, 0), np.int64) if index is None else index.numpy()
    if steps and batch:
        with one_at_a_time:
            cpu_loops.scan(
                rows_of_vectors(x, pad), rows_of_vectors(delta, pad), packed(A), rows_of_vectors(B), rows_of_vectors(C),
                packed(D), rows_of_vectors(z, pad), packed(delta_bias), delta_softplus, rows(threshold, batch),
                rows(scale, batch), places, mask_array(mask), y.numpy(), state.numpy(),
            )  # fmt: skip
    if pad:
        y, state = y[:, :, :channels].contiguous(), state[:, :channels].contiguous()
    return y.to(x.dtype), state


def selective_step(state: Tensor, given: Scan) -> Tensor:
    """See longscan.kernels.selective_step."""
    x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, *_ = given
    y = torch.empty(x.shape, dtype=torch.float32)
    batch = x.shape[0]
    with one_at_a_time:
        cpu_loops.step(
            state.numpy(), array(x), array(delta), packed(A), array(B), array(C), packed(D), array(z, 2),
            packed(delta_bias), delta_softplus, rows(threshold, batch), rows(scale, batch), y.numpy(),
        )  # fmt: skip
    return y.to(x.dtype)
