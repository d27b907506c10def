"""Which plan a prompt gets, and what each layer does by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..sidecar.plan import LayerPlan, Plan
from ..sidecar.sidecar import Sidecar


class Layered(Protocol):
    """What a plan needs to know of a model: where each of its layers lies."""

    @property
    def devices(self) -> Sequence[torch.device]: ...


def layer_plans(plans: tuple[Plan, ...], sidecar: Sidecar | None, weights: Layered, protected: int) -> list[LayerPlan]:
    """Resolve plans (one, or one a row) into what each layer needs, on its device."""
    if sidecar is None or all(plan.method == "none" for plan in plans):
        return [LayerPlan()] * len(weights.devices)
    return stacked([_layers(plan, sidecar, weights, protected) for plan in plans])


def _layers(plan: Plan, sidecar: Sidecar, weights: Layered, protected: int) -> list[LayerPlan]:
    devices, band = weights.devices, sidecar.band(plan.length)
    seen = plan.scan_lengths(len(devices), protected)
    if sidecar.keyed_by_prompt(band, plan.method):
        seen = [plan.length] * len(devices)
    found = []
    for i, device in enumerate(devices):
        g = sidecar.thresholds_in(band, i, seen[i], plan.method) if plan.method in ("filter", "both") else None
        scale = sidecar.scales(i, plan.length).to(device) if plan.method == "scale" else None
        keep = plan.decimate.get(i)
        weight = None if keep is None else sidecar.score_weights(i, plan.length).to(device)
        found.append(LayerPlan(None if g is None or not bool((g > 0).any()) else g.to(device), scale, keep, weight))
    return found


def stacked(rows: Sequence[list[LayerPlan]]) -> list[LayerPlan]:
    """The layers' plans of each row of a batch as one a layer, with (B, D) thresholds and scales; rows that share one
    keep it. Rows of unequal plans are not decimated."""
    if all(row is rows[0] for row in rows):
        return rows[0]
    return [
        LayerPlan(threshold=_rows([plan.threshold for plan in layer], 0.0), scale=_rows([p.scale for p in layer], 1.0))
        for layer in zip(*rows)
    ]


def _rows(given: Sequence[Tensor | None], neutral: float) -> Tensor | None:
    """(D,) of each row -> (B, D), `neutral` where a row has none; None if no row has."""
    some = next((t for t in given if t is not None), None)
    if some is None:
        return None
    return torch.stack([torch.full_like(some, neutral) if t is None else t for t in given])


def plan_at(sidecar: Sidecar | None, length: float, method: str, fresh: bool) -> Plan:
    """The plan of a prompt of `length` tokens; `fresh`: nothing was read before it."""
    if sidecar is None:
        if method not in ("auto", "none"):
            raise ValueError(f"method {method!r} needs a sidecar; load(model, sidecar=...)")
        return Plan("none", length)
    plan = sidecar.plan(length, method)
    if fresh or not plan.decimate:
        return plan
    # Later calls never decimate: what was read before is already in the state.
    return sidecar.plan(length, "filter") if plan.method == "both" else Plan("none", length)
