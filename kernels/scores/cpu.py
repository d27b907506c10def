"""The token scores on the CPU: tensors in, a numba loop, a tensor out. float32 inside, whatever the inputs' dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from ..shared.cpu_arrays import mask_array, one_at_a_time, packed
from . import cpu_loops


def token_scores(
    delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    """See longscan.kernels.token_scores."""
    out = torch.empty(delta.shape[:2], dtype=torch.float32)
    channels = delta.shape[2]
    with one_at_a_time:
        cpu_loops.scores(
            packed(delta),
            packed(torch.zeros(channels, dtype=torch.float32) if delta_bias is None else delta_bias),
            delta_softplus,
            mask_array(mask),
            packed(torch.ones(channels, dtype=torch.float32) if weight is None else weight),
            out.numpy(),
        )
    return out
