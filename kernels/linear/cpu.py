"""The product of a few tokens on the CPU: tensors in, a numba loop over the weight's rows, a tensor out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..shared.cpu_arrays import one_at_a_time, packed
from . import cpu_loops


def stored(weight: Tensor) -> np.ndarray:
    """A contiguous float32 weight as it lies, a bfloat16 one as its bits."""
    weight = weight.detach()
    values: np.ndarray = (weight.view(torch.int16) if weight.dtype == torch.bfloat16 else weight).numpy()
    return values


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See longscan.kernels.linear. weight: contiguous, float32 or bfloat16; sums are float32, y in the dtype of x."""
    y = torch.empty(*x.shape[:-1], weight.shape[0], dtype=torch.float32)
    with one_at_a_time:
        cpu_loops.product(
            packed(x.reshape(-1, x.shape[-1])), stored(weight), packed(bias), y.view(-1, y.shape[-1]).numpy()
        )
    return y.to(x.dtype)
