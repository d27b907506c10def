"""Bands -> Sidecar: the last step of a calibration, and the first of scoring a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from ..runtime.model import LM
from ..runtime.sidecar.sidecar import SCHEMA, VERSION, Band, Sidecar, canonical


def producer_version() -> str:
    try:
        return version("longscan")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0"


def sidecar_from_bands(
    lm: LM,
    train_length: int,
    bands: Sequence[tuple[Band, Mapping[str, Tensor]]],
    *,
    recipe: Any = None,
    calibration: Any = None,
    scores: Any = None,
    filter_decode: bool = True,
    rotary: Mapping[int, float] | None = None,
) -> Sidecar:
    """A Sidecar for `lm` from bands in order of length, each an entry and its tensors.

    rotary: factor on rotary positions by calibrated length; it and filter_decode are written where they say something
    """
    tensors = {f"bands.{b}.{name}": tensor for b, (_, found) in enumerate(bands) for name, tensor in found.items()}
    policy: dict[str, Any] = {"bands": [entry.to_json() for entry, _ in bands]}
    if not filter_decode:
        policy["filter_decode"] = False
    if rotary and any(factor > 1 for factor in rotary.values()):
        policy["rotary"] = {str(length): factor for length, factor in rotary.items()}
    metadata = {
        "format": "pt",
        "schema": SCHEMA,
        "schema_version": VERSION,
        "producer": "longscan",
        "producer_version": producer_version(),
        "base_model": lm.source.name,
        "base_model_revision": lm.source.revision,
        "model_fingerprint": lm.fingerprint,
        "train_length": str(train_length),
        "n_layer": str(len(lm.weights.layers)),
        "channels": str(lm.weights.channels),
        "recipe": canonical(recipe or {}),
        "calibration": canonical(calibration or {}),
        "scores": canonical(scores or []),
        "policy": canonical(policy),
    }
    return Sidecar(tensors, metadata)
