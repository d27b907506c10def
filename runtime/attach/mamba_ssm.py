"""mamba_ssm's Mamba2 mixer: other names, and a gated norm that its library computes on a GPU only."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .mamba2 import Mamba2
from .mixer import wide


class MambaSSM2(Mamba2):
    """As in the published mamba2-* models; tensor parallelism and half-MLP mixers (d_ssm) are refused."""

    def __init__(self, mixer: Any, backend: str):
        if mixer.process_group is not None or mixer.d_ssm != mixer.d_inner:
            raise ValueError("attach does not read tensor-parallel or d_ssm mixers; build the model without them")
        super().__init__(mixer, backend)

    def sizes(self) -> tuple[int, int, tuple[float, float]]:
        return self.mixer.ngroups, self.mixer.d_state, self.mixer.dt_limit

    def skip(self) -> Tensor:
        D = super().skip()
        return D.view(self.mixer.nheads, -1) if self.mixer.D_has_hdim else D

    def out(self, y: Tensor, z: Tensor) -> Tensor:
        m = self.mixer
        y, gate = wide(y.flatten(2)), F.silu(wide(z))
        if not m.rmsnorm:
            y = y * gate
        elif m.norm_before_gate:
            y = _rms(y, m.norm) * gate
        else:
            y = _rms(y * gate, m.norm)
        result: Tensor = m.out_proj(y.to(z.dtype))
        return result


def _rms(y: Tensor, norm: Any) -> Tensor:
    """RMS norm within groups of channels."""
    grouped = y.unflatten(-1, (-1, norm.group_size or y.shape[-1]))
    return (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + norm.eps)).flatten(-2) * norm.weight
