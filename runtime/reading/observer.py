"""How calibration watches the forward pass: an explicit argument, called once a layer and chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..families.layer import Inputs, Layer
from ..families.steering import Steering
from ..sidecar.plan import LayerPlan


@dataclass(frozen=True)
class ScanInputs:
    """What the scan of one layer is about to read; tensors are views, not to be changed or kept.

    Mamba-1: x, delta (B, L, D); B, C (B, L, N). Mamba-2: x (B, L, H, P); delta (B, L, H); B, C (B, L, G, N).
    delta is before bias and softplus; mask: (B, L) bool or None.
    L counts the tokens that enter the layer, before its own decimation.
    """

    weights: Steering | Layer
    plan: LayerPlan
    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    mask: Tensor | None

    @staticmethod
    def of(layer: Layer, plan: LayerPlan, inputs: Inputs, mask: Tensor | None) -> ScanInputs:
        """From a layer's flat inputs."""
        x, delta, B, C, _ = layer.shaped(inputs)
        return ScanInputs(layer, plan, x, delta, B, C, mask)


class Observer(Protocol):
    """Anything with this method can watch."""

    def observe(self, layer: int, inputs: ScanInputs) -> LayerPlan | None:
        """See a layer's scan inputs. A returned plan replaces this layer's (sequential calibration fits g here)."""
