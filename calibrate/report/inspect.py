"""`calibrate inspect`: what a sidecar says, as a document and as a table read in ten seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from ...runtime.sidecar.sidecar import Sidecar
from ..errors import UserError
from ..summary import Facts, calibrated_lengths, filtered_channels, headline, kept_mass, mean_distances


def describe(side: Sidecar) -> dict[str, Any]:
    """Everything but the tables themselves."""
    meta, facts = side.metadata, Facts.of(side)
    bands = []
    for b, band in enumerate(side.bands):
        entry: dict[str, Any] = {**band.to_json()}
        table = side.table(b, "thresholds")
        if table is not None:
            entry["stored_lengths"] = side.tensors[f"bands.{b}.lengths"].tolist()
            entry["filtered_channels"] = [int(n) for n in (table[-1] > 0).sum(1)]
        entry["decimation"] = {str(layer): n for layer, n in side.keep(b).items()}
        bands.append(entry)
    plain = (
        "schema", "schema_version", "producer", "producer_version", "base_model", "base_model_revision",
        "model_fingerprint",
    )  # fmt: skip
    return {
        **{key: meta[key] for key in plain},
        "train_length": side.train_length,
        "headline": headline(side),
        "layers": int(meta["n_layer"]),
        "channels": int(meta["channels"]),
        "bands": bands,
        "rotary": {str(length): factor for length, factor in side.rotary.items()},
        "by_layer": [{"length": n, "layers": layer_rows(side, n)} for n in calibrated_lengths(side)],
        "scores": facts.scores,
        "calibration": facts.calibration,
        "recipe": facts.recipe,
    }


def layer_rows(side: Sidecar, length: int, distance: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """One row a layer at a length: what its filter and its decimation do there, whichever of them "auto" uses.

    distance: mean distances measured just now, for sidecars that do not record them.

    global_channels and kept_mass (the factor m of those channels) are None where the sidecar holds no filter; keep is
    None in layers that do not decimate; mean_distance (tokens) is None where the calibration did not record it.
    """
    counts, distance = filtered_channels(side, length), mean_distances(side) or distance
    keep, mass = side.keep(side.band(length)), kept_mass(side, length)
    rows = []
    for layer in range(int(side.metadata["n_layer"])):
        filtered = counts[layer] if counts is not None else None
        rows.append(
            {
                "layer": layer,
                "global_channels": filtered,
                "mean_distance": None if distance is None else distance[layer],
                "keep": keep.get(layer),
                "kept_mass": mass if filtered else None,
            }
        )
    return rows


LAYER_HEAD = ("layer", "global channels", "mean distance", "keeps", "kept mass m")


def layer_cells(row: Mapping[str, Any], channels: int, *, absent: str, thousands: Literal["", ","] = "") -> list[str]:
    """A row of `layer_rows` in words, under LAYER_HEAD. absent: for what there is not; thousands: their separator."""
    n, distance, keep, mass = row["global_channels"], row["mean_distance"], row["keep"], row["kept_mass"]
    return [
        str(row["layer"]),
        absent if n is None else f"{n:{thousands}} ({n / channels:.0%})",
        absent if distance is None else f"{distance:.0f}",
        "all" if keep is None else f"{keep:{thousands}}",
        "all" if mass is None else f"{mass:.2f}",
    ]


def describe_layer(side: Sidecar, layer: int) -> dict[str, Any]:
    """One layer in detail: g's quartiles over its global channels at every stored length, decimation, distance.

    Raises UserError if the model has no such layer.
    """
    n_layer, channels = int(side.metadata["n_layer"]), int(side.metadata["channels"])
    if not 0 <= layer < n_layer:
        raise UserError(f"there is no layer {layer}; the model has layers 0 to {n_layer - 1}")
    bands = []
    for b, band in enumerate(side.bands):
        keep = side.keep(b)
        entry: dict[str, Any] = {"lengths": list(band.lengths), "method": band.method, "filter": []}
        entry["keep"] = keep.get(layer)
        whole = side.table(b, "thresholds")
        if whole is not None:
            table = whole[:, layer]
            for length, row in zip(side.tensors[f"bands.{b}.lengths"].tolist(), table):
                g = row[row > 0]
                quartiles = g.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist() if len(g) else None
                entry["filter"].append({"length": length, "global_channels": len(g), "g": quartiles})
            entry["channels"] = (table > 0).any(0).nonzero().flatten().tolist()
        if layer in keep:
            entry["scored_channels"] = int((side.score_weights(layer, band.lengths[0]) > 0).sum())
        bands.append(entry)
    distance = mean_distances(side)
    return {
        "layer": layer,
        "channels": channels,
        "mean_distance": None if distance is None else distance[layer],
        "bands": bands,
    }


def render(found: dict[str, Any]) -> str:
    """For people: the policy by length, then the layers at the longest calibrated length."""
    lines = [
        f"sidecar of {found['base_model']} (trained at {found['train_length']} tokens), "
        f"{found['layers']} layers x {found['channels']} channels, fingerprint {found['model_fingerprint'][:12]}",
        f"calibrated on {found['calibration'].get('texts')}, objective {found['calibration'].get('objective')}, "
        f"seed {found['calibration'].get('seed')}",
        *([found["headline"]] if found["headline"] else []),
        "",
    ]
    rows = [("lengths", "auto", "theta", "mass m(S)", "decimation")]
    for band in found["bands"]:
        theta = "" if band["log_theta"] is None else f"e^{band['log_theta']:.1f}"
        mass = " ".join(f"{band['mass'][str(n)]:.2f}" for n in band["lengths"] if str(n) in band["mass"])
        keep = " ".join(f"layer {layer}: {n}" for layer, n in band["decimation"].items())
        if keep:
            keep += f" (score: {band['score']} channels)"
        rows.append((",".join(map(str, band["lengths"])), band["method"], theta, mass, keep))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    if found["rotary"]:
        factors = ", ".join(f"{factor:g} at {length}" for length, factor in found["rotary"].items())
        lines.append(f"factor on rotary positions (auto): {factors}")
    last = found["by_layer"][-1]
    lines += [
        "",
        f"at {last['length']} tokens:",
        _row(*LAYER_HEAD),
        *(_row(*layer_cells(row, found["channels"], absent="-")) for row in last["layers"]),
    ]
    if all(row["mean_distance"] is None for row in last["layers"]):
        lines.append("(this sidecar does not record mean distances; calibrate again to have them)")
    return "\n".join(lines)


def render_layer(found: dict[str, Any]) -> str:
    """One layer for people."""
    distance = found["mean_distance"]
    lines = [f"layer {found['layer']}, {found['channels']} channels"]
    if distance is not None:
        lines.append(f"mean distance {distance:.1f} tokens")
    for band in found["bands"]:
        lines += ["", f"lengths {','.join(map(str, band['lengths']))} (auto: {band['method']})"]
        lines.append(f"{'tokens':>10}{'channels':>10}   g: least, quartiles, largest")
        for row in band["filter"]:
            g = "none filtered" if row["g"] is None else "  ".join(f"{value:.3g}" for value in row["g"])
            lines.append(f"{row['length']:>10}{row['global_channels']:>10}   {g}")
        if band.get("channels"):
            lines.append(f"channels: {' '.join(map(str, band['channels']))}")
        if band["keep"] is not None:
            lines.append(f"decimation keeps {band['keep']} tokens, scored over {band['scored_channels']} channels")
    return "\n".join(lines)


def _row(*cells: object) -> str:
    widths = (7, 19, 16, 9, 12)
    return "".join(f"{cell!s:>{width}}" for cell, width in zip(cells, widths))
