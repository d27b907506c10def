"""What every mixer of a foreign model looks like to `attach`: inputs, scan or step, output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..plan import LayerPlan
from ..steering import Steering


@dataclass(frozen=True)
class Inputs:
    """What the scan of one layer reads, and the convolution's inputs before it, for the cache.

    raw: (B, L, conv channels), 0 where masked; x, z, delta, B, C as the family's scan takes them
    """

    raw: Tensor
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


def wide(t: Tensor) -> Tensor:
    """float32 (float64 stays): what steers exponentials is never narrower."""
    return t.to(torch.promote_types(torch.float32, t.dtype))
