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
    devices = weights.devices
    n_layer = len(devices)
    if sidecar is None or all(plan.method == "none" for plan in plans):
        return [LayerPlan()] * n_layer
    rows = [_thresholds(plan, sidecar, n_layer, protected) for plan in plans]
    scaled = any(plan.method == "scale" for plan in plans)
    resolved = []
    for i, device in enumerate(devices):
        g = rows[0][i] if len(rows) == 1 else torch.stack([row[i] for row in rows])
        scales = [_scales(plan, sidecar, i) for plan in plans] if scaled else []
        keep = plans[0].decimate.get(i)
        resolved.append(
            LayerPlan(
                threshold=g.to(device) if bool((g > 0).any()) else None,
                scale=torch.stack(scales).squeeze(0).to(device) if scaled else None,
                keep=keep,
                score_weight=None if keep is None else sidecar.score_weights(i, plans[0].length).to(device),
            )
        )
    return resolved


def _thresholds(plan: Plan, sidecar: Sidecar, n_layer: int, protected: int) -> list[Tensor]:
    channels = int(sidecar.metadata["channels"])
    if plan.method not in ("filter", "both"):
        return [torch.zeros(channels)] * n_layer
    band = sidecar.band(plan.length)
    seen = plan.scan_lengths(n_layer, protected)
    if sidecar.keyed_by_prompt(band, plan.method):
        seen = [plan.length] * n_layer
    return [sidecar.thresholds_in(band, i, seen[i], plan.method) for i in range(n_layer)]


def _scales(plan: Plan, sidecar: Sidecar, layer: int) -> Tensor:
    if plan.method != "scale":
        return torch.ones(int(sidecar.metadata["channels"]))
    return sidecar.scales(layer, plan.length)


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
