"""Which checkpoint a model in memory came from: the fingerprint that `load` gives the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checkpoint import read_tensors
from ..errors import CheckpointError, SidecarError
from ..sidecar import Sidecar
from ..source import locate
from ..weights import _fingerprint
from .families import Family

_STEERING = ("A_log", "dt_proj.bias")


def check_sidecar(sidecar: Sidecar, model: Any, family: Family) -> None:
    """Raise SidecarError unless the sidecar was made for this model's weights.

    A model loaded in half precision has rounded the very values the fingerprint covers. Then the checkpoint it says it
    came from (`name_or_path`) is read instead, and must agree with the model up to that rounding.
    """
    held = _steering(model, family)
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    n_layer = sum(key.endswith("A_log") for key in held)
    found = _fingerprint(held, n_layer)
    if found != sidecar.metadata["model_fingerprint"] and held["backbone.layers.0.mixer.A_log"].dtype != torch.float32:
        try:
            stored = read_tensors(locate(name), lambda key, t: t if key.endswith(_STEERING) else t.to("meta"))
        except CheckpointError as error:
            raise SidecarError(
                "model_fingerprint: this model's A_log is in half precision, too coarse to compare, and its checkpoint "
                f"cannot be read ({error}); load the model in float32"
            ) from error
        values = {key: t for key, t in held.items() if key.endswith(_STEERING)}
        if all(key in stored and torch.equal(stored[key].to(t.dtype), t.cpu()) for key, t in values.items()):
            found = _fingerprint(stored, n_layer)
    sidecar.check_model(found, name)


def _steering(model: Any, family: Family) -> dict[str, Tensor]:
    """What the fingerprint covers, by the state-spaces names."""
    mixers = [mixer for _, mixer in family.find(model)]
    tensors = {
        f"backbone.layers.{i}.mixer.{name}": mixer.get_parameter(name).detach()
        for i, mixer in enumerate(mixers)
        for name in _STEERING
    }
    tensors["backbone.embedding.weight"] = family.embedding(model).weight
    tensors["backbone.layers.0.mixer.in_proj.weight"] = mixers[0].in_proj.weight
    return tensors
