"""A Mamba-2 layer (arXiv 2405.21060): one decay and one delta a head, groups of heads share B and C.

    M d_model   H heads   P channels a head   G groups   N d_state   W conv width   E = H P

    z, xBC, delta = in_proj(hidden)                     E, E + 2 G N, H
    x, B, C       = silu(conv(xBC))                     (H, P), (G, N), (G, N)
    h_t           = exp(delta_t A) h_{t-1} + delta_t x_t (x) B_t
    y_t           = h_t . C_t + D x_t                   (H, P)
    out_proj(norm(y silu(z)))                           RMS over each group; the gate may come after, or be all
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import causal_conv1d, ssd_scan, ssd_step
from .config import ModelConfig
from .errors import CheckpointError
from .layer import Inputs, conv_step
from .padding import conv_inputs
from .plan import LayerPlan
from .steering import Steering
from .tensors import Tensors

STEERING = ("A_log", "dt_bias")  # what the fingerprint covers


@dataclass(frozen=True, kw_only=True)
class Mamba2(Steering):
    """A, dt_bias: (H,) float32. Biases are None where the checkpoint has none."""

    norm: Tensor  # (M,)
    norm_bias: Tensor | None  # (M,), LayerNorm models only
    in_proj: Tensor  # (2 E + 2 G N + H, M): z, x, B, C, delta
    in_bias: Tensor | None
    conv: Tensor  # (E + 2 G N, W)
    conv_bias: Tensor | None  # (E + 2 G N,)
    D: Tensor  # (H,) or (H, P) float32
    gated_norm: Tensor | None  # (E,); None: the gate alone
    out_proj: Tensor  # (M, E)
    out_bias: Tensor | None  # (M,)
    groups: int
    epsilon: float  # of the gated norm
    norm_before_gate: bool

    @property
    def _widths(self) -> list[int]:
        """x, B, C"""
        E = self.out_proj.shape[1]
        return [E, *[(self.conv.shape[0] - E) // 2] * 2]

    @property
    def conv_shape(self) -> tuple[int, ...]:
        return self.conv.shape[0], self.conv.shape[1] - 1

    @property
    def state_shape(self) -> tuple[int, ...]:
        E, GN, _ = self._widths
        return self.channels, E // self.channels, GN // self.groups

    @property
    def width(self) -> int:
        """Its norm, the projections, x, B and C after the convolution, y before and after its norm."""
        return self.in_proj.shape[1] + self.in_proj.shape[0] + self.conv.shape[0] + 2 * self.out_proj.shape[1]

    def inputs(self, hidden: Tensor, conv: Tensor, mask: Tensor | None, backend: str) -> tuple[Inputs, Tensor]:
        z, xBC, delta = self._in(hidden)
        xBC, conv = conv_inputs(xBC, conv, mask)
        xBC, conv = causal_conv1d(xBC, self.conv, self.conv_bias, conv, backend=backend)
        x, B, C = xBC.split(self._widths, dim=-1)
        return Inputs(x, delta, B, C, z), conv

    def _in(self, hidden: Tensor) -> tuple[Tensor, ...]:
        sizes = [self.out_proj.shape[1], self.conv.shape[0], self.channels]
        return F.linear(hidden, self.in_proj, self.in_bias).split(sizes, dim=-1)

    def shaped(self, inputs: Inputs) -> Inputs:
        x, B, C = self._shape(inputs.x, inputs.B, inputs.C)
        return Inputs(x, inputs.delta, B, C, inputs.z)

    def _shape(self, x: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, C = (t.unflatten(-1, (self.groups, -1)) for t in (B, C))
        return x.unflatten(-1, (self.channels, -1)), B, C

    def scan(
        self, inputs: Inputs, plan: LayerPlan, mask: Tensor | None, state: Tensor, backend: str
    ) -> tuple[Tensor, Tensor]:
        x, delta, B, C, z = self.shaped(inputs)
        y, state = ssd_scan(
            x, delta, self.A, B, C, self.D, delta_bias=self.dt_bias, threshold=plan.threshold, scale=plan.scale,
            mask=mask, initial_state=state, delta_limit=self.limit, backend=backend,
        )  # fmt: skip
        return F.linear(self._gate(y.flatten(-2), z), self.out_proj, self.out_bias), state

    def step(self, hidden: Tensor, conv: Tensor, state: Tensor, plan: LayerPlan, backend: str) -> Tensor:
        z, xBC, delta = self._in(hidden)
        xBC = conv_step(xBC, conv, self.conv, self.conv_bias)
        x, B, C = self._shape(*xBC.split(self._widths, dim=-1))
        y = ssd_step(
            state, x, delta, self.A, B, C, self.D, delta_bias=self.dt_bias, threshold=plan.threshold,
            scale=plan.scale, delta_limit=self.limit, backend=backend,
        )  # fmt: skip
        return F.linear(self._gate(y.flatten(-2), z), self.out_proj, self.out_bias)

    def _gate(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z (..., E) -> the gated norm, in float32 at least, back in y's dtype."""
        dtype = torch.promote_types(y.dtype, torch.float32)
        wide, gate = y.to(dtype), F.silu(z.to(dtype))
        if self.gated_norm is None:
            return (wide * gate).to(y.dtype)
        wide = wide if self.norm_before_gate else wide * gate
        by_group = wide.unflatten(-1, (self.groups, -1))
        normed = by_group * torch.rsqrt(by_group.square().mean(-1, keepdim=True) + self.epsilon)
        normed = normed.flatten(-2) * self.gated_norm
        return (normed * gate if self.norm_before_gate else normed).to(y.dtype)


def read_mamba2(tensors: Tensors, p: str, config: ModelConfig) -> Mamba2:
    """The layer whose tensors' names begin with `p`."""
    assert config.mamba2 is not None
    M, G, about = config.d_model, config.mamba2.groups, config.mamba2
    (H,) = tensors.shape(p + "mixer.A_log", 1)
    E = tensors.shape(p + "mixer.out_proj.weight", 2)[1]
    channels, _, W = tensors.shape(p + "mixer.conv1d.weight", 3)
    if H < 1 or E % H or H % G or channels <= E or (channels - E) % (2 * G):
        raise CheckpointError(
            f"{tensors.name}: {p}mixer has {E} inner and {channels} convolved channels, {H} heads and {G} groups, "
            "which do not fit together; config.json and weights differ"
        )
    get, optional = tensors.get, tensors.optional
    a_channel = tensors.shape(p + "mixer.D", 1) == (E,)  # else one value a head
    D = get(p + "mixer.D", E if a_channel else H)
    return Mamba2(
        norm=get(p + "norm.weight", M),
        norm_bias=None if config.rms_norm else optional(p + "norm.bias", M),
        in_proj=get(p + "mixer.in_proj.weight", E + channels + H, M),
        in_bias=optional(p + "mixer.in_proj.bias", E + channels + H),
        conv=get(p + "mixer.conv1d.weight", channels, 1, W)[:, 0],
        conv_bias=optional(p + "mixer.conv1d.bias", channels),
        A=-torch.exp(get(p + "mixer.A_log", H)),
        dt_bias=get(p + "mixer.dt_bias", H),
        limit=about.delta_limit,
        D=D.view(H, -1) if a_channel else D,
        gated_norm=get(p + "mixer.norm.weight", E) if about.gated_norm else None,
        out_proj=get(p + "mixer.out_proj.weight", M, E),
        out_bias=optional(p + "mixer.out_proj.bias", M),
        groups=G,
        epsilon=about.epsilon,
        norm_before_gate=about.norm_before_gate,
    )
