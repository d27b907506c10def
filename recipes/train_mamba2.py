"""The second demo's Mamba-2 for training: a scalar decay a head, one group of B and C; mamba_ssm's names."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_model import Norm, Shape, causal_conv, inverse_softplus
from train_ssd import ssd


@dataclass(frozen=True)
class Shape2(Shape):
    """P headdim; H = D / P heads."""

    n_layer: int = 4
    d_state: int = 32
    headdim: int = 8

    @property
    def heads(self) -> int:
        return self.d_inner // self.headdim

    def mixer(self) -> nn.Module:
        return Mixer2(self)

    def ssm_cfg(self) -> dict[str, object]:
        return {"layer": "Mamba2", **super().ssm_cfg(), "headdim": self.headdim, "ngroups": 1}


class Mixer2(nn.Module):
    """One state space dual layer, always from a zero state."""

    def __init__(self, shape: Shape2) -> None:
        super().__init__()
        M, D, N, H = shape.d_model, shape.d_inner, shape.d_state, shape.heads
        self.in_proj = nn.Linear(M, 2 * D + 2 * N + H, bias=False)
        self.conv1d = nn.Conv1d(D + 2 * N, D + 2 * N, shape.d_conv, groups=D + 2 * N, padding=shape.d_conv - 1)
        dt = torch.exp(torch.empty(H).uniform_(math.log(0.001), math.log(0.1)))
        self.dt_bias = nn.Parameter(inverse_softplus(dt))
        self.A_log = nn.Parameter(torch.log(torch.empty(H).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(H))
        self.norm = Norm(D)
        self.out_proj = nn.Linear(D, M, bias=False)
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(shape.n_layer)
        self.split, self.parts, self.heads = [D, D + 2 * N, H], [D, N, N], (H, shape.headdim)

    def forward(self, hidden: Tensor) -> Tensor:
        z, xBC, delta = self.in_proj(hidden).split(self.split, dim=-1)
        x, B, C = F.silu(causal_conv(xBC, self.conv1d)).split(self.parts, dim=-1)
        x = x.unflatten(2, self.heads)
        y = ssd(x, F.softplus(delta + self.dt_bias), -torch.exp(self.A_log), B, C) + self.D[:, None] * x
        return self.out_proj(self.norm(y.flatten(2) * F.silu(z)))
