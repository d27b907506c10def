"""How calibration watches the forward pass: an explicit argument, called once a layer and chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .plan import LayerPlan
from .weights import Layer


@dataclass(frozen=True)
class ScanInputs:
    """What the scan of one layer is about to read; tensors are views, not to be changed or kept.

    x, delta: (B, L, D), delta before bias and softplus; B, C: (B, L, N); mask: (B, L) bool or None.
    L counts the tokens that enter the layer, before its own decimation.
    """

    weights: Layer
    plan: LayerPlan
    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    mask: Tensor | None


class Observer(Protocol):
    """Anything with this method can watch."""

    def observe(self, layer: int, inputs: ScanInputs) -> LayerPlan | None:
        """See a layer's scan inputs. A returned plan replaces this layer's (sequential calibration fits g here)."""
