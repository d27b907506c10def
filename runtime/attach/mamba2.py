"""A Mamba-2 mixer of another library, run through our kernels: one A and delta a head, a gated norm after the scan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...kernels import ssd_scan, ssd_step
from ..plan import LayerPlan
from ..steering import Steering
from .mixer import Inputs, check_activation, convolve, wide


class Mamba2:
    """transformers' Mamba2 mixers, those of the hybrids Zamba2 and Bamba among them.

    The model's time_step_limit holds for steps as for prompts; transformers leaves it out of its own steps.
    """

    def __init__(self, mixer: Any, backend: str):
        check_activation(mixer)
        self.mixer, self.backend = mixer, backend
        self.groups, self.states, self.limit = self.sizes()

    def sizes(self) -> tuple[int, int, tuple[float, float]]:
        """G groups of B and C, N states, and the limits of delta."""
        low, high = self.mixer.time_step_limit
        return self.mixer.n_groups, self.mixer.ssm_state_size, (low, high)

    @property
    def width(self) -> int:
        """W, the convolution's width."""
        return int(self.mixer.conv1d.weight.shape[-1])

    @property
    def steering(self) -> Steering:
        """What decides how fast each head forgets."""
        return Steering(A=-torch.exp(wide(self.mixer.A_log)), dt_bias=wide(self.mixer.dt_bias), limit=self.limit)

    def inputs(self, hidden: Tensor, conv: Tensor | None, mask: Tensor | None) -> Inputs:
        """hidden (B, L, M), conv state -> x (B, L, H, P), delta (B, L, H), B and C (B, L, G, N), z (B, L, H P)."""
        m, G, N = self.mixer, self.groups, self.states
        channels, H = m.conv1d.weight.shape[0], m.A_log.shape[0]
        inner = channels - 2 * G * N
        z, raw, delta = m.in_proj(hidden).split([inner, channels, H], dim=-1)
        seen, window = convolve(raw, m.conv1d, conv, mask, self.backend)
        x, B, C = seen.split([inner, G * N, G * N], dim=-1)
        return Inputs(window, x.unflatten(2, (H, -1)), delta, B.unflatten(2, (G, N)), C.unflatten(2, (G, N)), z)

    def scan(
        self, i: Inputs, s: Steering, plan: LayerPlan, mask: Tensor | None, index: Tensor | None, ssm: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Many tokens: y (B, L or K, H, P) and the last state (B, H, P, N)."""
        return ssd_scan(
            i.x, i.delta, s.A, i.B, i.C, self.skip(),
            delta_bias=s.dt_bias, threshold=plan.threshold, scale=plan.scale, index=index, mask=mask,
            initial_state=ssm, delta_limit=s.limit, backend=self.backend,
        )  # fmt: skip

    def step(self, i: Inputs, s: Steering, plan: LayerPlan, ssm: Tensor) -> Tensor:
        """One token: y (B, 1, H, P); `ssm` is updated in place."""
        y = ssd_step(
            ssm, i.x[:, 0], i.delta[:, 0], s.A, i.B[:, 0], i.C[:, 0], self.skip(),
            delta_bias=s.dt_bias, threshold=plan.threshold, scale=plan.scale, delta_limit=s.limit,
            backend=self.backend,
        )  # fmt: skip
        return y[:, None]

    def skip(self) -> Tensor:
        """D: (H,), or (H, P)."""
        return wide(self.mixer.D)

    def out(self, y: Tensor, z: Tensor) -> Tensor:
        """y (B, K, H, P) and the gate z (B, K, H P) -> the mixer's output (B, K, M)."""
        result: Tensor = self.mixer.out_proj(self.mixer.norm(y.flatten(2), z).to(y.dtype))
        return result
