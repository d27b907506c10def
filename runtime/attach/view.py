"""A foreign model seen the way plans and calibration see Weights: layers that forget, a device, a fingerprint."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from ..steering import Steering
from .identity import fingerprint_of
from .mixer import Mixer

if TYPE_CHECKING:
    from .families import Family


class Part(NamedTuple):
    """One Mamba layer: the block whose output is the residual stream, the mixer inside, and its arithmetic."""

    block: nn.Module
    module: Any
    mixer: Mixer


class View:
    """Stands in for runtime.weights.Weights; attention layers have no entry. Tensors are the model's own."""

    def __init__(self, model: nn.Module, family: Family, backend: str):
        self._family, self._model = family, model
        self.parts = tuple(Part(block, mixer, family.mixer(mixer, backend)) for block, mixer in family.find(model))

    @property
    def embedding(self) -> Tensor:
        weight: Tensor = self._family.embedding(self._model).weight
        return weight

    @property
    def layers(self) -> tuple[Steering, ...]:
        return tuple(part.mixer.steering for part in self.parts)

    @cached_property
    def fingerprint(self) -> str:
        """The same that `load` gives the checkpoint; see Sidecar.check_model."""
        return fingerprint_of(self._model, self._family)

    @property
    def channels(self) -> int:
        """Values of delta a token and layer: what one entry of a sidecar's tables holds."""
        return int(self.parts[0].module.A_log.shape[0])
