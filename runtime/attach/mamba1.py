"""A Mamba-1 mixer of another library, run through our kernels; its projections stay the model's own modules."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import selective_scan, selective_step
from ..plan import LayerPlan
from ..steering import Steering
from .mixer import Inputs, check_activation, convolve, wide


class Mamba1:
    """Mixers with in_proj, conv1d, x_proj, dt_proj, A_log, D and out_proj: transformers' Mamba and mamba_ssm's."""

    def __init__(self, mixer: Any, backend: str):
        if not mixer.dt_proj.weight.is_floating_point():
            raise ValueError("attach cannot read quantized dt_proj weights; load the model in a float dtype")
        check_activation(mixer)
        self.mixer, self.backend = mixer, backend

    @property
    def width(self) -> int:
        """W, the convolution's width."""
        return int(self.mixer.conv1d.weight.shape[-1])

    @property
    def steering(self) -> Steering:
        """What decides how fast each channel forgets."""
        return Steering(A=-torch.exp(wide(self.mixer.A_log)), dt_bias=wide(self.mixer.dt_proj.bias))

    def inputs(self, hidden: Tensor, conv: Tensor | None, mask: Tensor | None) -> Inputs:
        """hidden (B, L, M) and the conv state (B, D, W-1) -> everything the scan reads."""
        m = self.mixer
        raw, z = m.in_proj(hidden).chunk(2, dim=-1)
        x, window = convolve(raw, m.conv1d, conv, mask, self.backend)
        N = m.A_log.shape[1]
        low_rank, B, C = m.x_proj(x).split([m.dt_proj.weight.shape[1], N, N], dim=-1)
        low_rank, B, C = self.normed(low_rank, B, C)
        return Inputs(window, x, F.linear(low_rank, m.dt_proj.weight), B, C, z)

    def normed(self, low_rank: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What lies between x_proj and the scan: nothing in Mamba-1."""
        return low_rank, B, C

    def scan(
        self, i: Inputs, s: Steering, plan: LayerPlan, mask: Tensor | None, index: Tensor | None, ssm: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Many tokens: y (B, L or K, D) and the last state (B, D, N)."""
        return selective_scan(
            i.x, i.delta, s.A, i.B, i.C, wide(self.mixer.D), i.z,
            delta_bias=s.dt_bias, threshold=plan.threshold, scale=plan.scale, index=index, mask=mask,
            initial_state=ssm, backend=self.backend,
        )  # fmt: skip

    def step(self, i: Inputs, s: Steering, plan: LayerPlan, ssm: Tensor) -> Tensor:
        """One token: y (B, 1, D); `ssm` is updated in place."""
        y = selective_step(
            ssm, i.x[:, 0], i.delta[:, 0], s.A, i.B[:, 0], i.C[:, 0], wide(self.mixer.D), i.z[:, 0],
            delta_bias=s.dt_bias, threshold=plan.threshold, scale=plan.scale, backend=self.backend,
        )  # fmt: skip
        return y[:, None]

    def out(self, y: Tensor, z: Tensor) -> Tensor:
        """y (B, K, D) -> the mixer's output (B, K, M); the gate z is already in y."""
        result: Tensor = self.mixer.out_proj(y)
        return result


class FalconMamba(Mamba1):
    """Falcon-Mamba: Mamba-1 with weightless RMS norms on delta's low rank, B and C."""

    def normed(self, low_rank: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m = self.mixer
        return m.dt_layernorm(low_rank), m.b_layernorm(B), m.c_layernorm(C)
