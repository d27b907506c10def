"""A Mamba-1 block's step, from the operations' loops."""

from __future__ import annotations

import numpy as np

from ..conv.cpu_loops import step as conv_step
from ..linear.cpu_loops import product
from ..norm.cpu_loops import rms
from ..scan.cpu_loops import step as scan_step
from ..shared.cpu_compile import compiled

_MAMBA1 = (
    "void(f8, f4[:,::1], f4[:,:,:], f4[:,:,::1], f4[:,:], f4[:,:], f4[::1], {w}, f4[::1], f4[:,:], f4[::1], {w}, {w}, "
    "f4[::1], f4[:,::1], f4[::1], {w}, f4[::1])"
)


@compiled(_MAMBA1.format(w="f4[:,::1]"), _MAMBA1.format(w="i2[:,::1]"))
def mamba1(
    epsilon, residual, conv, state, threshold, scale,
    norm, in_weight, in_bias, taps, conv_bias, x_weight, dt_weight, dt_bias, A, D, out_weight, out_bias,
):  # fmt: skip
    """residual (R, M) += block(residual); conv (R, D, W-1) and state (R, D, N) in place. What is absent has size 0.

    threshold, scale (R, D); the weights (out, in) as linear's loop takes them.
    """
    rows = residual.shape[0]
    channels, N = A.shape
    rank = dt_weight.shape[1]
    none = np.empty(0, np.float32)
    hidden, xz = np.empty(residual.shape, np.float32), np.empty((rows, 2 * channels), np.float32)
    rms(residual, norm, epsilon, hidden)
    product(hidden, in_weight, in_bias, xz)
    x, low = np.empty((rows, channels), np.float32), np.empty((rows, rank + 2 * N), np.float32)
    conv_step(conv, xz[:, :channels], taps, conv_bias, x)
    product(x, x_weight, none, low)
    delta, y = np.empty((rows, channels), np.float32), np.empty((rows, channels), np.float32)
    product(low[:, :rank].copy(), dt_weight, none, delta)
    B, C, z = low[:, rank : rank + N], low[:, rank + N :], xz[:, channels:]
    scan_step(state, x, delta, A, B, C, D, z, dt_bias, True, threshold, scale, y)
    product(y, out_weight, out_bias, hidden)
    residual += hidden
