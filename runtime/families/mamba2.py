"""A Mamba-2 layer (arXiv 2405.21060): one decay and one delta a head, groups of heads share B and C.

M d_model   H heads   P channels a head   G groups   N d_state   W conv width   E = H P

z, xBC, delta = in_proj(hidden)                     E, E + 2 G N, H
x, B, C       = silu(conv(xBC))                     (H, P), (G, N), (G, N)
h_t           = exp(delta_t A) h_{t-1} + delta_t x_t (x) B_t
y_t           = h_t . C_t + D x_t                   (H, P)
out_proj(norm(y silu(z)))                           RMS over each group; the gate may come after, or be all
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels import causal_conv1d, causal_conv1d_step, gated_rms_norm, ssd_scan, ssd_step
from ..checkpoint.config import ModelConfig
from ..checkpoint.tensors import Tensors
from ..errors import CheckpointError
from ..sidecar.plan import LayerPlan
from .layer import Inputs, Linear, Projection, conv_inputs, project
from .steering import Steering

STEERING = ("A_log", "dt_bias")  # what the fingerprint covers


Gate = Callable[[Tensor, Tensor], Tensor]  # y, z (..., E) -> (..., E)


@dataclass(frozen=True, kw_only=True)
class Mamba2(Steering):
    """A, dt_bias: (H,) float32."""

    in_proj: Projection  # M -> 2 E + 2 G N + H: z, x, B, C, delta
    conv: Tensor  # (E + 2 G N, W)
    conv_bias: Tensor | None  # (E + 2 G N,)
    D: Tensor  # (H,) or (H, P) float32
    gate: Gate
    out_proj: Projection  # E -> M
    groups: int
    N: int

    @property
    def _widths(self) -> list[int]:
        """x, B, C"""
        GN = self.groups * self.N
        return [self.conv.shape[0] - 2 * GN, GN, GN]

    @property
    def conv_shape(self) -> tuple[int, ...]:
        return self.conv.shape[0], self.conv.shape[1] - 1

    @property
    def state_shape(self) -> tuple[int, ...]:
        return self.channels, self._widths[0] // self.channels, self.N

    @property
    def width(self) -> int:
        """The projections, x, B and C after the convolution, y before and after its norm."""
        return 3 * self._widths[0] + 2 * self.conv.shape[0] + self.channels

    def scratch(self, dtype: torch.dtype, device: str) -> int:
        """The gated norm's steps, and y before it."""
        return (3 if dtype.itemsize < 4 else 2) * self._widths[0]

    def inputs(self, hidden: Tensor, conv: Tensor, mask: Tensor | None, backend: str) -> tuple[Inputs, Tensor]:
        z, xBC, delta = self._in(hidden, backend)
        xBC, conv = conv_inputs(xBC, conv, mask)
        xBC, conv = causal_conv1d(xBC, self.conv, self.conv_bias, conv, backend=backend)
        x, B, C = xBC.split(self._widths, dim=-1)
        return Inputs(x, delta, B, C, z), conv

    def _in(self, hidden: Tensor, backend: str) -> tuple[Tensor, ...]:
        widths = [self._widths[0], self.conv.shape[0], self.channels]
        return project(self.in_proj, hidden, backend).split(widths, dim=-1)

    def shaped(self, inputs: Inputs) -> Inputs:
        x, B, C = self._shape(inputs.x, inputs.B, inputs.C)
        return Inputs(x, inputs.delta, B, C, inputs.z)

    def _shape(self, x: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, C = (t.unflatten(-1, (self.groups, -1)) for t in (B, C))
        return x.unflatten(-1, (self.channels, -1)), B, C

    def scan(
        self, inputs: Inputs, plan: LayerPlan, mask: Tensor | None, state: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        x, delta, B, C, z = self.shaped(inputs)
        y, state = ssd_scan(
            x, delta, self.A, B, C, self.D, delta_bias=self.dt_bias, threshold=plan.threshold, scale=plan.scale,
            mask=mask, initial_state=state, delta_limit=self.limit, backend=backend,
        )  # fmt: skip
        return self._out(y, z, backend), state

    def _out(self, y: Tensor, z: Tensor, backend: str) -> Tensor:
        """y (..., H, P), z (..., E) -> (..., M). Another library's gate runs as it is."""
        y = y.flatten(-2)
        gated = self.gate(y, z, backend) if isinstance(self.gate, GatedNorm) else self.gate(y, z).to(y.dtype)
        return project(self.out_proj, gated, backend)

    def step(self, hidden: Tensor, conv: Tensor, state: Tensor, plan: LayerPlan, backend: str) -> Tensor:
        z, xBC, delta = self._in(hidden, backend)
        xBC = causal_conv1d_step(conv, xBC, self.conv, self.conv_bias, backend=backend)
        x, B, C = self._shape(*xBC.split(self._widths, dim=-1))
        y = ssd_step(
            state, x, delta, self.A, B, C, self.D, delta_bias=self.dt_bias, threshold=plan.threshold,
            scale=plan.scale, delta_limit=self.limit, backend=backend,
        )  # fmt: skip
        return self._out(y, z, backend)


@dataclass(frozen=True)
class GatedNorm:
    """y silu(z) over its RMS within each group, or the gate after the norm; the gate alone without a weight (E,)."""

    weight: Tensor | None
    groups: int
    epsilon: float
    norm_before_gate: bool

    def __call__(self, y: Tensor, z: Tensor, backend: str = "auto") -> Tensor:
        """y, z (..., E), in the dtype of y."""
        return gated_rms_norm(y, z, self.weight, self.epsilon, self.groups, self.norm_before_gate, backend=backend)


def read_mamba2(tensors: Tensors, p: str, config: ModelConfig) -> Mamba2:
    """The mixer whose tensors' names begin with `p`."""
    assert config.mamba2 is not None
    M, G, about = config.d_model, config.mamba2.groups, config.mamba2
    (H,) = tensors.shape(p + "A_log", 1)
    E = tensors.shape(p + "out_proj.weight", 2)[1]
    channels, _, W = tensors.shape(p + "conv1d.weight", 3)
    if H < 1 or E % H or H % G or channels <= E or (channels - E) % (2 * G):
        raise CheckpointError(
            f"{tensors.name}: {p} has {E} inner and {channels} convolved channels, {H} heads and {G} groups, "
            "which do not fit together; config.json and weights differ"
        )
    get, optional = tensors.get, tensors.optional
    a_channel = tensors.shape(p + "D", 1) == (E,)  # else one value a head
    D = get(p + "D", E if a_channel else H)
    weight = get(p + "norm.weight", E) if about.gated_norm else None
    return Mamba2(
        in_proj=Linear(get(p + "in_proj.weight", E + channels + H, M), optional(p + "in_proj.bias", E + channels + H)),
        conv=get(p + "conv1d.weight", channels, 1, W)[:, 0],
        conv_bias=optional(p + "conv1d.bias", channels),
        A=-torch.exp(get(p + "A_log", H)),
        dt_bias=get(p + "dt_bias", H),
        limit=about.delta_limit,
        D=D.view(H, -1) if a_channel else D,
        gate=GatedNorm(weight, G, about.epsilon, about.norm_before_gate),
        out_proj=Linear(get(p + "out_proj.weight", M, E), optional(p + "out_proj.bias", M)),
        groups=G,
        N=(channels - E) // (2 * G),
    )
