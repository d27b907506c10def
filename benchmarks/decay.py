"""How fast the demo's global channels forget, before and after filtering: the data of LongMamba's figure 4.

    python benchmarks/decay.py build/demo/demo.longscan.safetensors docs/demo/decay.json

One window of the evaluation text at 64 times the training length is read plain and filtered; for every global channel
(one the sidecar filters) the log of the cumulative decay, log prod_t mean_n exp(delta_t A_n), is kept by position.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from longscan.calibrate.texts.sources import read_texts
from longscan.runtime import load
from longscan.runtime.reading.observer import ScanInputs
from longscan.runtime.sidecar.plan import LayerPlan

POINTS = 48


class Decay:
    """Observer: (positions, channels) cumulative log decay of each layer, with the plan's threshold applied."""

    def __init__(self, positions: Tensor) -> None:
        self.positions, self.layers = positions, []

    def observe(self, layer: int, inputs: ScanInputs) -> LayerPlan | None:
        delta = F.softplus(inputs.delta[0] + inputs.weights.dt_bias)
        if inputs.plan.threshold is not None:
            delta = torch.where(delta > inputs.plan.threshold, delta, 0.0)
        step = torch.cat([torch.exp(d[:, :, None] * inputs.weights.A).mean(2).double().log() for d in delta.split(256)])
        self.layers.append(step.cumsum(0)[self.positions - 1])
        return None


def main() -> None:
    sidecar, out = sys.argv[1:]
    lm = load("demo", sidecar)
    assert lm.sidecar is not None
    L, S = lm.sidecar.train_length, 64 * lm.sidecar.train_length
    ids = torch.tensor([list(read_texts("demo", role="eval").documents[0].encode()[:S])])
    positions = torch.logspace(3, torch.log2(torch.tensor(float(S))).item(), POINTS, base=2).round().long().unique()
    curves = {}
    for method in ("none", "filter"):
        watch = Decay(positions)
        lm.prefill(ids, method=method, observer=watch)
        picked = [d[:, lm.sidecar.thresholds(i, S) > 0] for i, d in enumerate(watch.layers)]
        joined = torch.cat(picked, 1)
        quartiles = joined.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=1)
        curves[method] = [[round(v, 3) for v in row] for row in quartiles.tolist()]
    document = {"train_length": L, "length": S, "positions": positions.tolist(), "quartiles": curves}
    Path(out).write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
