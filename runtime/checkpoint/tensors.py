"""A checkpoint's tensors, taken out by name and checked for shape; what nobody takes is an error too."""

from __future__ import annotations

from torch import Size, Tensor

from ..errors import CheckpointError


class Tensors:
    """Raises CheckpointError naming the tensor that is missing, misshapen or unknown. name: of the checkpoint."""

    def __init__(self, name: str, tensors: dict[str, Tensor]) -> None:
        self.name, self._tensors = name, tensors
        self._used: set[str] = set()

    def optional(self, name: str, *shape: int) -> Tensor | None:
        """The tensor, or None if the checkpoint has none of the name."""
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        self._used.add(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{self.name}: {name} has shape {tuple(tensor.shape)}, expected {shape}; config.json and weights differ"
            )
        return tensor

    def get(self, name: str, *shape: int) -> Tensor:
        tensor = self.optional(name, *shape)
        if tensor is None:
            raise CheckpointError(f"{self.name}: no tensor {name}; give a complete Mamba checkpoint")
        return tensor

    def shape(self, name: str, dimensions: int) -> Size:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.name}: no tensor {name}; give a complete Mamba checkpoint")
        if tensor.dim() != dimensions:
            raise CheckpointError(
                f"{self.name}: {name} has shape {tuple(tensor.shape)}, expected {dimensions} dimensions; "
                "config.json and weights differ"
            )
        return tensor.shape

    def finish(self) -> None:
        """All tensors must have been taken."""
        unknown = sorted(set(self._tensors) - self._used)
        if unknown:
            raise CheckpointError(f"{self.name}: tensor {unknown[0]} belongs to no layer; check config.json")
