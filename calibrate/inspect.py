"""`calibrate inspect`: what a sidecar says, as a document and as text."""

from __future__ import annotations

import json
from typing import Any

from ..runtime.sidecar import Sidecar


def describe(side: Sidecar) -> dict[str, Any]:
    """Everything but the tables themselves."""
    meta = side.metadata
    bands = []
    for b, band in enumerate(side.bands):
        entry: dict[str, Any] = {**band.to_json()}
        if f"bands.{b}.thresholds" in side.tensors:
            table = side.tensors[f"bands.{b}.thresholds"]
            entry["stored_lengths"] = side.tensors[f"bands.{b}.lengths"].tolist()
            entry["filtered_channels"] = [int(n) for n in (table[-1] > 0).sum(1)]
        entry["decimation"] = {}
        if f"bands.{b}.layers" in side.tensors:
            layers, keep = side.tensors[f"bands.{b}.layers"].tolist(), side.tensors[f"bands.{b}.keep"].tolist()
            entry["decimation"] = dict(zip(map(str, layers), keep))
        bands.append(entry)
    plain = {key: meta[key] for key in ("schema", "schema_version", "producer", "producer_version", "base_model")}
    return {
        **plain,
        "base_model_revision": meta["base_model_revision"],
        "model_fingerprint": meta["model_fingerprint"],
        "train_length": side.train_length,
        "layers": int(meta["n_layer"]),
        "channels": int(meta["channels"]),
        "bands": bands,
        "scores": json.loads(meta["scores"]),
        "calibration": json.loads(meta["calibration"]),
        "recipe": json.loads(meta["recipe"]),
    }


def render(found: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"sidecar of {found['base_model']} (trained at {found['train_length']} tokens), "
        f"{found['layers']} layers x {found['channels']} channels, fingerprint {found['model_fingerprint'][:12]}",
        f"calibrated on {found['calibration'].get('texts')}, objective {found['calibration'].get('objective')}, "
        f"seed {found['calibration'].get('seed')}",
        "",
        f"{'lengths':<22}{'auto':<10}{'theta':<11}{'mass m(S)':<34}{'decimation'}",
    ]
    for band in found["bands"]:
        theta = "" if band["log_theta"] is None else f"e^{band['log_theta']:.1f}"
        mass = " ".join(f"{band['mass'][str(n)]:.2f}" for n in band["lengths"] if str(n) in band["mass"])
        keep = " ".join(f"layer {layer}: {n}" for layer, n in band["decimation"].items())
        if keep:
            keep += f" (score: {band['score']} channels)"
        lengths = ",".join(map(str, band["lengths"]))
        lines.append(f"{lengths:<22}{band['method']:<10}{theta:<11}{mass:<34}{keep}".rstrip())
    for band in found["bands"]:
        if "filtered_channels" in band:
            lines.append(f"filtered channels by layer at {band['lengths'][-1]}: {band['filtered_channels']}")
    return "\n".join(lines)
