"""Last stage: what was decided -> the sidecar, and what `run --json` says about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ...runtime.sidecar.sidecar import Sidecar
from ..recipe.recipe import to_json
from ..sidecars import sidecar_from_bands
from .decide import Decided
from .job import Job


@dataclass(frozen=True)
class Calibration:
    """The sidecar and what `run --json` says about it."""

    sidecar: Sidecar
    bands: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    cost: float
    seconds: float
    tokens: int


def write(job: Job, decided: Decided, seconds: float) -> Calibration:
    """seconds: how long the stages before took."""
    side = sidecar_from_bands(
        job.lm, job.L, decided.bands, recipe=json.loads(to_json(job.recipe)), calibration=decided.record,
        scores=decided.scores, filter_decode=job.recipe.filter.decode, rotary=decided.rotary,
    )  # fmt: skip
    summary = []
    for entry, tensors in decided.bands:
        keep = dict(zip(map(str, tensors["layers"].tolist()), tensors["keep"].tolist())) if "layers" in tensors else {}
        summary.append({**entry.to_json(), "decimation": keep})
    return Calibration(side, summary, decided.scores, round(decided.cost, 2), round(seconds, 1), decided.tokens)
