"""What the papers would do to a model: their settings, and no search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...runtime.sidecar.sidecar import Band
from ..errors import UserError
from ..measure.measuring import LayerMeasurement, PublishedTable
from ..recipe.published import published_filter
from ..search.candidates import FilterPick, published_pick
from ..search.tables import Tables, band_entry
from .job import Job


def published_table(job: Job) -> PublishedTable | None:
    """Lengths at which the published g is fitted while measuring, and C; None where g is found otherwise."""
    if job.recipe.filter.fit != "published":
        return None
    settings = published_filter(job.recipe, job.lm.source.name, job.L)
    return tuple(sorted({n for n in (*settings.table, *job.lengths) if n > job.L})), settings.clamp


def unsearched_band(job: Job, tables: Tables) -> tuple[Band, Mapping[str, Tensor]]:
    """One band for all lengths, of what the recipe and --method say outright.

    Raises UserError where the filter's theta calls no channel global.
    """
    if job.options.method == "none":
        return band_entry("none", {}, None, job.lengths, job.L), {}
    recipe, name, L, layers, tensors = job.recipe, job.lm.source.name, job.L, tables.layers, {}
    filters: dict[int, FilterPick] = {}
    start, mass = 0, {}
    if (fitted := published_table(job)) and job.options.method != "decimate":
        settings = published_filter(recipe, name, L)
        log_theta = float(torch.tensor(settings.theta, dtype=torch.float64).log())
        start = settings.start
        tensors["lengths"] = torch.tensor(fitted[0])
        rows, aggregate = [], recipe.filter.aggregate
        far = [layer.decay(aggregate) > log_theta for layer in layers]
        if not any(bool(channels.any()) for channels in far):
            raise UserError(f"no channel's decay is above filter.theta {settings.theta:g}; give a smaller one")
        for layer, channels in zip(layers, far):
            g = layer.published.mean(0) if aggregate == "mean" else layer.published.amax(0)
            rows.append(torch.where(channels, g, 0.0))
        tensors["thresholds"] = torch.stack(rows, 1).float()
        mass = {str(n): _kept_mass(layers, tensors["thresholds"][k], n, L) for k, n in enumerate(fitted[0])}
        mass = {n: value for n, value in mass.items() if value > 0}
        filters = {n: FilterPick(log_theta, tuple(range(len(layers))), 1.0) for n in job.lengths}
    decimate = None
    if job.options.method in ("decimate", "both", "auto") and not job.lm.hybrid:
        decimate = published_pick(recipe, name, len(layers), L)
        tensors |= tables.band(job.lengths, {}, decimate, None)
    method = "both" if filters and decimate else "filter" if filters else "decimate"
    entry = band_entry(method, filters, decimate, job.lengths, L)
    changed = {**entry.__dict__, "mass": mass, "start": start if filters else 0}
    if filters:
        changed |= {"g_fit": "published", "interpolation": "log" if recipe.filter.interpolate else "nearest"}
    return Band(**changed), tensors


def _kept_mass(layers: Sequence[LayerMeasurement], g: Tensor, length: int, L: int) -> float:
    """Mean over filtered channels of the mass factor m = kept share x S / L that g (n_layer, D) amounts to."""
    shares = [layer.sketch.kept_share(g[i].to(layer.sketch.mass.device)).cpu() for i, layer in enumerate(layers)]
    joined = torch.cat([share[g[i] > 0] for i, share in enumerate(shares)]) * length / L
    return round(float(joined.mean()), 6) if len(joined) else 0.0
