"""Strict checks of a sidecar. Every refusal names the key, what was found, what was expected, and the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SidecarError
from ..files import parse_json
from .plan import METHODS

_REQUIRED = (
    "format",
    "schema",
    "schema_version",
    "producer",
    "producer_version",
    "base_model",
    "base_model_revision",
    "model_fingerprint",
    "train_length",
    "recipe",
    "calibration",
    "scores",
    "policy",
    "n_layer",
    "channels",
)
_BAND_KEYS = {"lengths", "method", "theta", "log_theta", "mass", "g_fit", "interpolation", "start", "score"}
_MOST = 2**53  # lengths beyond are no whole numbers as floats
RETIRED = {"tilt"}  # written by earlier versions; what it says is in the tables
_REMEDY = "fetch the file again, or calibrate again"


def _refuse(key: str, found: object, expected: str, remedy: str = _REMEDY) -> SidecarError:
    return SidecarError(f"{key}: found {found}, expected {expected}; {remedy}")


def check(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Raise SidecarError at the first thing that is wrong."""
    if metadata.get("schema") != "longscan.sidecar":
        found = repr(metadata.get("schema"))
        raise _refuse("schema", found, "'longscan.sidecar'", "give a file made by `calibrate run`")
    major = metadata.get("schema_version", "").split(".")[0]
    if major != "1":
        raise _refuse("schema_version", repr(metadata.get("schema_version")), "1", "upgrade longscan to read this file")
    for key in _REQUIRED:
        if not isinstance(metadata.get(key), str):
            raise _refuse(key, "nothing", "a metadata entry")
    train_length, n_layer, channels = (_positive(metadata, key) for key in ("train_length", "n_layer", "channels"))
    for key in ("recipe", "calibration", "scores"):
        _json(metadata, key)
    policy = _json(metadata, "policy")
    bands = policy.get("bands") if isinstance(policy, dict) else None
    if not isinstance(bands, list) or not bands:
        raise _refuse("policy", repr(policy)[:60], "at least one band")
    unknown = sorted(set(policy) - {"bands", "filter_decode"})
    if unknown or not isinstance(policy.get("filter_decode", True), bool):
        found = repr(unknown[0] if unknown else policy["filter_decode"])
        raise _refuse("policy", found, "bands, and filter_decode true or false", "upgrade longscan to read this file")
    known: set[str] = set()
    lengths: list[int] = []
    for index, band in enumerate(bands):
        _check_band(index, band, train_length)
        lengths += band["lengths"]
        known |= _check_tensors(f"bands.{index}.", band, tensors, train_length, n_layer, channels)
    if lengths != sorted(set(lengths)):
        raise _refuse("policy", lengths, "calibrated lengths in ascending order")
    unknown = sorted(set(tensors) - known)
    if unknown:
        raise _refuse(unknown[0], "a tensor", "no tensor of that name in schema version 1")


def _positive(metadata: Mapping[str, str], key: str) -> int:
    text = metadata[key]
    if not text.isdecimal() or not 1 <= int(text[:20]) < _MOST:
        raise _refuse(key, repr(text[:40]), "a whole number > 0")
    return int(text)


def _json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return parse_json(metadata[key])
    except ValueError as error:
        raise _refuse(key, f"{metadata[key][:40]!r} ({str(error)[:80]})", "JSON") from None


def _check_band(index: int, band: Any, train_length: int) -> None:
    key = f"policy.bands.{index}"
    if not isinstance(band, dict) or set(band) - RETIRED != _BAND_KEYS:
        found = sorted((set(band) - RETIRED) ^ _BAND_KEYS) if isinstance(band, dict) else repr(band)[:40]
        raise _refuse(key, f"missing or unknown {found}", f"the keys {sorted(_BAND_KEYS)}")
    lengths = band["lengths"]
    ok = isinstance(lengths, list) and lengths and all(type(n) is int and train_length < n < _MOST for n in lengths)
    if not ok or lengths != sorted(set(lengths)):
        raise _refuse(
            f"{key}.lengths", repr(lengths)[:60], f"ascending whole numbers above the training length {train_length}"
        )
    for name, allowed in (
        ("method", METHODS),
        ("g_fit", ("stretched", "sequential", "published")),
        ("interpolation", ("log", "nearest")),
        ("score", ("all", "global", "relative", "reach")),  # the last two: by earlier versions
    ):
        if band[name] not in allowed:
            raise _refuse(f"{key}.{name}", repr(band[name])[:60], "one of " + ", ".join(allowed))
    if type(band["start"]) is not int or not 0 <= band["start"] < _MOST:
        raise _refuse(f"{key}.start", repr(band["start"])[:60], "a length >= 0")
    for name in ("theta", "log_theta"):
        if band[name] is not None and not _number(band[name]):
            raise _refuse(f"{key}.{name}", repr(band[name])[:60], "a number, or null")
    if not isinstance(band["mass"], dict) or not all(
        name.isdecimal() and len(name) < 20 and _number(value) and value > 0 for name, value in band["mass"].items()
    ):
        raise _refuse(f"{key}.mass", repr(band["mass"])[:60], "positive factors by length")


def _number(value: Any) -> bool:
    return (isinstance(value, float) and not math.isnan(value)) or (type(value) is int and abs(value) < _MOST)


def _check_tensors(
    prefix: str, band: dict[str, Any], tensors: Mapping[str, Tensor], train_length: int, n_layer: int, channels: int
) -> set[str]:
    known: set[str] = set()

    def get(name: str, dtype: torch.dtype, *shape: int | None) -> Tensor:
        key = prefix + name
        known.add(key)
        tensor = tensors.get(key)
        if tensor is None:
            raise _refuse(key, "nothing", "a tensor", _REMEDY)
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        fits = tensor.dim() == len(shape) and all(n is None or n == m for n, m in zip(shape, tensor.shape))
        if not fits or tensor.dtype != dtype:
            raise _refuse(key, f"{tensor.dtype} {tuple(tensor.shape)}", f"{dtype} {wanted}")
        if dtype == torch.float32 and not (torch.isfinite(tensor).all() and (tensor >= 0).all()):
            raise _refuse(key, "NaN, infinite or negative values", "finite values >= 0")
        return tensor

    method = band["method"]
    if prefix + "lengths" in tensors or method in ("filter", "both", "scale"):
        lengths = get("lengths", torch.int64, None)
        steps = lengths.diff()
        if lengths.numel() == 0 or (steps <= 0).any() or int(lengths[0]) <= train_length:
            raise _refuse(prefix + "lengths", lengths.tolist(), f"ascending lengths above {train_length}")
        table = (lengths.numel(), n_layer, channels)
        if prefix + "thresholds" in tensors or method in ("filter", "both"):
            get("thresholds", torch.float32, *table)
        if prefix + "both" in tensors:
            get("both", torch.float32, *table)
        if (prefix + "scales" in tensors or method == "scale") and not (get("scales", torch.float32, *table) > 0).all():
            raise _refuse(prefix + "scales", "a scale of 0", "factors above 0")
    if prefix + "layers" in tensors or method in ("decimate", "both"):
        layers = get("layers", torch.int64, None)
        found = layers.tolist()
        if not found or found != sorted(set(found)) or found[0] < 0 or found[-1] >= n_layer:
            raise _refuse(prefix + "layers", found, f"ascending layers below {n_layer}")
        keep = get("keep", torch.int64, len(found))
        if (keep < 1).any():
            raise _refuse(prefix + "keep", keep.tolist(), "at least one token a layer")
        get("weights", torch.float32, len(found), channels)
    return known
