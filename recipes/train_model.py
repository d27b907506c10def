"""The demo's Mamba-1 for training: the equations of the paper, mamba_ssm's parameter names and initialisation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_scan import scan


@dataclass(frozen=True)
class Shape:
    """V vocabulary, M d_model, N d_state, W conv width; D = 2 M, R = ceil(M / 16)."""

    d_model: int = 64
    n_layer: int = 5
    d_state: int = 16
    d_conv: int = 4
    vocab_size: int = 256

    @property
    def d_inner(self) -> int:
        return 2 * self.d_model

    @property
    def dt_rank(self) -> int:
        return math.ceil(self.d_model / 16)

    def mixer(self) -> nn.Module:
        return Mixer(self)

    def ssm_cfg(self) -> dict[str, object]:
        """What mamba_ssm calls so in config.json."""
        return {"d_state": self.d_state, "d_conv": self.d_conv, "expand": 2}


def causal_conv(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A depthwise convolution of x (B, L, D) as shifted products: faster than torch's on a CPU."""
    taps = conv.weight[:, 0]
    width = taps.shape[1]
    padded, out = F.pad(x, (0, 0, width - 1, 0)), conv.bias
    for k in range(width):
        out = torch.addcmul(out, padded[:, k : k + x.shape[1]], taps[:, k])
    return out


def inverse_softplus(x: Tensor) -> Tensor:
    x = x.clamp(min=1e-4)
    return x + torch.log(-torch.expm1(-x))


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


class Mixer(nn.Module):
    """One selective state space layer, always from a zero state."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        M, D, N, R = shape.d_model, shape.d_inner, shape.d_state, shape.dt_rank
        self.in_proj = nn.Linear(M, 2 * D, bias=False)
        self.conv1d = nn.Conv1d(D, D, shape.d_conv, groups=D, padding=shape.d_conv - 1)
        self.x_proj = nn.Linear(D, R + 2 * N, bias=False)
        self.dt_proj = nn.Linear(R, D)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, N + 1, dtype=torch.float32)).repeat(D, 1))
        self.D = nn.Parameter(torch.ones(D))
        self.out_proj = nn.Linear(D, M, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(R**-0.5), R**-0.5)
        dt = torch.exp(torch.rand(D) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus(dt))
            self.out_proj.weight /= math.sqrt(shape.n_layer)
        self.split = [R, N, N]

    def forward(self, hidden: Tensor) -> Tensor:
        x, z = self.in_proj(hidden).chunk(2, dim=-1)
        x = F.silu(causal_conv(x, self.conv1d))
        low_rank, B, C = self.x_proj(x).split(self.split, dim=-1)
        y = scan(x, F.softplus(self.dt_proj(low_rank)), -torch.exp(self.A_log), B, C)
        return self.out_proj((y + self.D * x) * F.silu(z))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm = Norm(shape.d_model)
        self.mixer = shape.mixer()

    def forward(self, residual: Tensor) -> Tensor:
        return residual + self.mixer(self.norm(residual))


class Backbone(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm_f = Norm(shape.d_model)


class MambaLM(nn.Module):
    """ids (B, L) -> logits (B, L, V); tied head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = Backbone(shape)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.backbone.embedding(ids)
        for block in self.backbone.layers:
            x = block(x)
        return F.linear(self.backbone.norm_f(x), self.backbone.embedding.weight)
