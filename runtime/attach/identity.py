"""Which checkpoint a model in memory came from: the fingerprint that `load` gives the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checkpoint.reader import read_tensors
from ..checkpoint.source import Source, locate
from ..errors import CheckpointError, SidecarError
from ..families.weights import STEERING, fingerprint
from ..sidecar.sidecar import Sidecar
from .families import Family


def fingerprint_of(model: Any, family: Family) -> str:
    """sha256 over shapes, A_log and dt bias as float32, layers counted over the Mamba layers alone."""
    return _digest(model, family, _steering(model, family))


def stored_fingerprint(source: Source, model: Any, family: Family) -> str:
    """The same of the values as its checkpoint holds them: loading may have rounded them."""
    held, stored = _steering(model, family), _stored(source)
    return _digest(model, family, {name: stored.get(name, tensor) for name, tensor in held.items()})


def check_sidecar(sidecar: Sidecar, model: Any, family: Family, checkpoint: str | None = None) -> None:
    """Raise SidecarError unless the sidecar was made for this model's weights.

    A model loaded in half precision has rounded the very values the fingerprint covers. Then the checkpoint it came
    from (its own `name_or_path`, or the one given) is read instead, and must agree with the model up to that rounding.
    """
    held = _steering(model, family)
    found = _digest(model, family, held)
    name = checkpoint or str(getattr(model, "name_or_path", "") or type(model).__name__)
    if found != sidecar.metadata["model_fingerprint"] and any(t.dtype != torch.float32 for t in held.values()):
        try:
            stored = _stored(locate(name))
        except CheckpointError as error:
            raise SidecarError(
                "model_fingerprint: this model's A_log is in half precision, too coarse to compare, and its checkpoint "
                f"cannot be read ({error}); give attach(..., checkpoint=...), or load the model in float32"
            ) from error
        if all(key in stored and torch.equal(stored[key].to(t.dtype), t.cpu()) for key, t in held.items()):
            found = _digest(model, family, stored)
    sidecar.check_model(found, name)


def _stored(source: Source) -> dict[str, Tensor]:
    """What the fingerprint covers, as a checkpoint holds it."""
    found = read_tensors(source, lambda name, t: t, lambda name: name.endswith(STEERING))
    return {_place(name): tensor for name, tensor in found.items()}


def _place(name: str) -> str:
    """A tensor's name inside the stack of layers, which a model in memory may call otherwise than its checkpoint."""
    return name.removeprefix("model.").removeprefix("backbone.")


def _steering(model: Any, family: Family) -> dict[str, Tensor]:
    """What the fingerprint covers, as the model holds it."""
    mixers = {id(mixer) for _, mixer in family.find(model)}
    return {
        _place(f"{path}.{name}"): parameter.detach()
        for path, module in model.named_modules()
        if id(module) in mixers
        for name, parameter in module.named_parameters()
        if name in STEERING
    }


def _digest(model: Any, family: Family, steering: dict[str, Tensor]) -> str:
    names = {id(module): path for path, module in model.named_modules()}
    mixers = [mixer for _, mixer in family.find(model)]
    tensors = {
        f"backbone.layers.{i}.mixer.{name}": steering[place]
        for i, mixer in enumerate(mixers)
        for name in STEERING
        if (place := _place(f"{names[id(mixer)]}.{name}")) in steering
    }
    tensors["backbone.embedding.weight"] = family.embedding(model).weight
    projection = mixers[0].in_proj  # its own sizes: a quantised weight may lie packed in another shape
    sizes = projection.out_features, projection.in_features
    tensors["backbone.layers.0.mixer.in_proj.weight"] = torch.empty(sizes, device="meta")
    return fingerprint(tensors, len(mixers))
