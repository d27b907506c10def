"""A foreign model seen the way plans and calibration see Weights: layers that forget, a device, a fingerprint."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..families.layer import Layer
from .adapters import Adapter
from .identity import fingerprint_of

if TYPE_CHECKING:
    from .families import Family


class Part(NamedTuple):
    """One Mamba layer: the block whose output is the residual stream, the mixer inside, and how it becomes a layer."""

    block: nn.Module
    module: Any
    adapter: Adapter

    @property
    def layer(self) -> Layer:
        """Of its parameters as they are now."""
        return self.adapter(self.module)


class View:
    """Stands in for families.weights.Weights; attention layers have no entry. Tensors are the model's own."""

    def __init__(self, model: nn.Module, family: Family):
        self._family, self._model = family, model
        self.parts = tuple(Part(block, mixer, family.layer) for block, mixer in family.find(model))
        if not self.parts:  # Granite 4 has members of attention alone
            raise ValueError(f"this {type(model).__name__} has no Mamba layers; there is nothing to filter")
        _ = self.layers  # refuses what no layer can be made of

    @property
    def embedding(self) -> Tensor:
        weight: Tensor = self._family.embedding(self._model).weight
        return weight

    @property
    def layers(self) -> tuple[Layer, ...]:
        return tuple(part.layer for part in self.parts)

    @property
    def devices(self) -> list[torch.device]:
        """Where each layer lies: accelerate spreads them."""
        return [part.module.A_log.device for part in self.parts]

    @cached_property
    def fingerprint(self) -> str:
        """The same that `load` gives the checkpoint; see Sidecar.check_model."""
        return fingerprint_of(self._model, self._family)

    @property
    def channels(self) -> int:
        """Values of delta a token and layer: what one entry of a sidecar's tables holds."""
        return int(self.parts[0].module.A_log.shape[0])
