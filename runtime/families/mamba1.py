"""A Mamba-1 layer (arXiv 2312.00752), and Falcon-Mamba's, which normalises delta's low rank, B and C.

M d_model   D d_inner   N d_state   R dt_rank   W conv width

x, z        = in_proj(hidden)                       (B, L, D) each
x           = silu(conv(x))
low, B, C   = x_proj(x)                             R, N, N; Falcon-Mamba: each divided by its RMS
delta       = dt_proj(low)                          (B, L, D)
h_t         = exp(delta_t A) h_{t-1} + delta_t x_t B_t
y_t         = (h_t . C_t + D x_t) silu(z_t)         out_proj(y)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...kernels import causal_conv1d, causal_conv1d_step, inner_rms_norm, linear, selective_scan, selective_step
from ...kernels.linear.api import is_stored
from ..checkpoint.config import ModelConfig
from ..checkpoint.tensors import Tensors
from ..sidecar.plan import LayerPlan
from .layer import Inputs, Linear, Norm, Projection, conv_inputs, project
from .steering import Steering

STEERING = ("A_log", "dt_proj.bias")  # what the fingerprint covers

# (delta's low rank, B and C side by side (..., R + 2 N), R, backend) -> the three, normed
InnerNorms = Callable[[Tensor, int, str], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Mamba1(Steering):
    """A: (D, N), dt_bias: (D,) float32."""

    in_proj: Projection  # M -> 2 D: x, then z
    conv: Tensor  # (D, W)
    conv_bias: Tensor | None  # (D,)
    x_proj: Projection  # D -> R + 2 N: delta's low rank, B, C
    dt_proj: Tensor  # (D, R)
    D: Tensor  # (D,) float32
    out_proj: Projection  # D -> M
    inner_norms: InnerNorms | None = None  # Falcon-Mamba's and Jamba's

    @property
    def conv_shape(self) -> tuple[int, ...]:
        return self.conv.shape[0], self.conv.shape[1] - 1

    @property
    def state_shape(self) -> tuple[int, ...]:
        return tuple(self.A.shape)

    @property
    def width(self) -> int:
        """x and z before and after the convolution, delta, B, C and its low rank, and y."""
        D, N = self.A.shape
        return 5 * D + self.dt_proj.shape[1] + 2 * N

    def scratch(self, dtype: torch.dtype, device: str) -> int:
        """x, delta, z, B and C as the CPU's loop reads them."""
        D, N = self.A.shape
        return 3 * D + 2 * N if device == "cpu" and dtype.itemsize < 4 else 0

    def inputs(self, hidden: Tensor, conv: Tensor, mask: Tensor | None, backend: str) -> tuple[Inputs, Tensor]:
        x, z = project(self.in_proj, hidden, backend).chunk(2, dim=-1)
        x, conv = conv_inputs(x, conv, mask)
        x, conv = causal_conv1d(x, self.conv, self.conv_bias, conv, backend=backend)
        delta, B, C = self._project(x, backend)
        return Inputs(x, delta, B, C, z), conv

    def _project(self, x: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., D) -> delta before bias and softplus (..., D), B (..., N), C (..., N)."""
        N, R = self.A.shape[1], self.dt_proj.shape[1]
        projected = project(self.x_proj, x, backend)
        if self.inner_norms is None:
            low_rank, B, C = projected.split([R, N, N], dim=-1)
        else:
            low_rank, B, C = self.inner_norms(projected, R, backend)
        return linear(low_rank, self.dt_proj, backend=backend), B, C

    def arrays(self, before: Norm) -> tuple[Any, ...] | None:
        """The block's weights for a CPU's fused step (kernels/block); None where it is not made of such weights."""
        projections = (self.in_proj, self.x_proj, Linear(self.dt_proj), self.out_proj)
        plain = [p for p in projections if isinstance(p, Linear) and is_stored(p.weight, before.dtype)]
        if len(plain) < len(projections) or before.bias is not None or self.inner_norms is not None:
            return None
        from ...kernels.block.cpu import mamba1_arrays  # needs numba

        in_proj, x_proj, dt_proj, out_proj = plain
        return mamba1_arrays(
            before.weight, (in_proj.weight, in_proj.bias), (self.conv, self.conv_bias), x_proj.weight, dt_proj.weight,
            self.dt_bias, self.A, self.D, (out_proj.weight, out_proj.bias),
        )  # fmt: skip

    def shaped(self, inputs: Inputs) -> Inputs:
        return inputs

    def scan(
        self, inputs: Inputs, plan: LayerPlan, mask: Tensor | None, state: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        x, delta, B, C, z = inputs
        y, state = selective_scan(
            x, delta, self.A, B, C, self.D, z, delta_bias=self.dt_bias, threshold=plan.threshold, scale=plan.scale,
            mask=mask, initial_state=state, backend=backend,
        )  # fmt: skip
        return project(self.out_proj, y, backend), state

    def step(self, hidden: Tensor, conv: Tensor, state: Tensor, plan: LayerPlan, backend: str) -> Tensor:
        x, z = project(self.in_proj, hidden, backend).chunk(2, dim=-1)
        x = causal_conv1d_step(conv, x, self.conv, self.conv_bias, backend=backend)
        delta, B, C = self._project(x, backend)
        y = selective_step(
            state, x, delta, self.A, B, C, self.D, z, delta_bias=self.dt_bias, threshold=plan.threshold,
            scale=plan.scale, backend=backend,
        )  # fmt: skip
        return project(self.out_proj, y, backend)


@dataclass(frozen=True)
class OverRms:
    """Falcon-Mamba's inner norms, which have no weights."""

    epsilon: float

    def __call__(self, projected: Tensor, rank: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
        N = (projected.shape[-1] - rank) // 2
        low_rank, B, C = inner_rms_norm(projected, rank, self.epsilon, backend=backend).split([rank, N, N], dim=-1)
        return low_rank, B, C


def read_mamba1(tensors: Tensors, p: str, config: ModelConfig) -> Mamba1:
    """The mixer whose tensors' names begin with `p`."""
    M = config.d_model
    D, N = tensors.shape(p + "A_log", 2)
    R = tensors.shape(p + "dt_proj.weight", 2)[1]
    W = tensors.shape(p + "conv1d.weight", 3)[2]
    get, optional = tensors.get, tensors.optional
    return Mamba1(
        in_proj=Linear(get(p + "in_proj.weight", 2 * D, M), optional(p + "in_proj.bias", 2 * D)),
        conv=get(p + "conv1d.weight", D, 1, W)[:, 0],
        conv_bias=optional(p + "conv1d.bias", D),
        x_proj=Linear(get(p + "x_proj.weight", R + 2 * N, D)),
        dt_proj=get(p + "dt_proj.weight", D, R),
        dt_bias=get(p + "dt_proj.bias", D),
        A=-torch.exp(get(p + "A_log", D, N)),
        D=get(p + "D", D),
        out_proj=Linear(get(p + "out_proj.weight", M, D), optional(p + "out_proj.bias", M)),
        inner_norms=None if config.inner_epsilon is None else OverRms(config.inner_epsilon),
    )
