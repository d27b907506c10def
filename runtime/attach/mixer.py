"""What every mixer of a foreign model looks like to `attach`: inputs, scan or step, output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...kernels import causal_conv1d
from ..padding import conv_inputs
from ..plan import LayerPlan
from ..steering import Steering


@dataclass(frozen=True)
class Inputs:
    """What the scan of one layer reads, and the convolution's inputs before it, for the cache.

    window: (B, conv channels, W), its last W inputs, those of earlier calls among them
    x, z, delta, B, C as the family's scan takes them
    """

    window: Tensor
    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor


class Mixer(Protocol):
    """One layer's arithmetic, by family."""

    @property
    def width(self) -> int: ...
    @property
    def steering(self) -> Steering: ...
    def inputs(self, hidden: Tensor, conv: Tensor | None, mask: Tensor | None) -> Inputs: ...
    def scan(
        self, i: Inputs, s: Steering, plan: LayerPlan, mask: Tensor | None, index: Tensor | None, ssm: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...
    def step(self, i: Inputs, s: Steering, plan: LayerPlan, ssm: Tensor) -> Tensor: ...
    def out(self, y: Tensor, z: Tensor) -> Tensor: ...


def convolve(
    raw: Tensor, conv1d: Any, before: Tensor | None, mask: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """raw (B, L, E), the last W-1 inputs before it (B, E, W-1) -> silu(conv(raw)), and the last W inputs (B, E, W)."""
    weight = conv1d.weight[:, 0]
    if before is None:
        before = raw.new_zeros(raw.shape[0], raw.shape[2], weight.shape[1] - 1)
    raw, before = conv_inputs(raw, before, mask)
    out, _ = causal_conv1d(raw, weight, conv1d.bias, before, backend=backend)
    window = torch.cat([before.to(raw.dtype), raw[:, -weight.shape[1] :].transpose(1, 2)], 2)
    return out, window[..., -weight.shape[1] :].contiguous()


def check_activation(mixer: Any) -> None:
    """Raise ValueError for a mixer that does not gate with silu, as the kernels do."""
    name = getattr(mixer, "activation", "silu")
    if name not in ("silu", "swish"):
        raise ValueError(f"this model's activation is {name!r}; attach reads models with silu, as the published ones")


def wide(t: Tensor) -> Tensor:
    """float32 (float64 stays): what steers exponentials is never narrower."""
    return t.to(torch.promote_types(torch.float32, t.dtype))
