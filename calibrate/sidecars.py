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


def assemble(
    lm: LM,
    train_length: int,
    bands: Sequence[tuple[Band, Mapping[str, Tensor]]],
    *,
    recipe: Any = None,
    calibration: Any = None,
    scores: Any = None,
    filter_decode: bool = True,
) -> Sidecar:
    """A Sidecar for `lm` from bands in order of length, each an entry and its tensors."""
    tensors = {f"bands.{b}.{name}": tensor for b, (_, found) in enumerate(bands) for name, tensor in found.items()}
    policy = {"bands": [entry.to_json() for entry, _ in bands]}
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
        "policy": canonical(policy if filter_decode else {**policy, "filter_decode": False}),
    }
    return Sidecar(tensors, metadata)
