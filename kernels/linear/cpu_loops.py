"""The product of a few float32 vectors and a weight: memory-bound, so each weight is read from memory once."""

from __future__ import annotations

import numpy as np
from numba import prange

from ..shared.cpu_compile import compiled
from .cpu_vector import dot


@compiled(
    "void(f4[:,::1], f4[:,::1], f4[::1], f4[:,::1])", "void(f4[:,::1], i2[:,::1], f4[::1], f4[:,::1])", parallel=True
)
def product(x, weight, bias, y):
    """y (R, O) = x (R, K) weight (O, K)^T + bias (O,); a bias of size 0 is none.

    weight: float32, or int16 that are bfloat16's bits. The threads share its rows, so that the result does not depend
    on their number.
    """
    outputs, K = weight.shape
    for o in prange(outputs):
        shift = bias[o] if bias.size else np.float32(0.0)
        for r in range(x.shape[0]):  # from the second on, the weight's row is in the first-level cache
            y[r, o] = dot(weight, o * K, x, r * K, K) + shift
