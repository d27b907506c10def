"""What the published clamp does to the kept mass: its m(S) on the demo model, beside the m(S) a calibration picked.

    python benchmarks/clamp.py build/demo/demo.longscan.safetensors [docs/demo/clamp.json]

LongMamba's fit clamps delta at its (1 - C) quantile and keeps, at length S, as much of the clamped mass as there was
at L. m(S) is the mass it keeps of delta itself, over the training length's: the mean over the channels the sidecar
filters.
Draws docs/clamp.png.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from longscan.calibrate.measure.published_fit import published_g
from longscan.calibrate.texts.sources import read_texts
from longscan.calibrate.texts.tokens import encode
from longscan.calibrate.texts.windows import token_windows
from longscan.runtime import Sidecar, load
from longscan.runtime.reading.observer import ScanInputs

DOCS = Path(__file__).resolve().parents[1] / "docs"
CLAMPS = (None, 0.05, 0.2)
WINDOWS = 5  # as published


class Deltas:
    """Observer: delta of every layer, (windows, L, D)."""

    def __init__(self) -> None:
        self.layers: dict[int, Tensor] = {}

    def observe(self, layer: int, inputs: ScanInputs) -> None:
        self.layers[layer] = F.softplus(inputs.delta + inputs.weights.dt_bias)


def kept(delta: Tensor, S: int, C: float | None) -> Tensor:
    """m(S) of each channel (D,): windows (n, L, D), g the mean of the windows' as published."""
    g = torch.stack([published_g(window, S, C) for window in delta]).mean(0)
    share = torch.where(delta > g, delta, 0.0).double().sum((0, 1)) / delta.double().sum((0, 1))
    return share * S / delta.shape[1]


def main() -> None:
    sidecar = Sidecar.read(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else DOCS / "demo" / "clamp.json"
    lm, L = load("demo"), sidecar.train_length
    windows = token_windows(encode(lm, read_texts("demo", role="run")), L, WINDOWS, tail=L, seed=0)
    seen = Deltas()
    lm.prefill(windows, method="none", observer=seen)
    lengths = [n for band in sidecar.bands for n in band.lengths]
    curves: dict[str, list[float]] = {}
    for C in CLAMPS:
        line = []
        for n in lengths:
            found = [kept(delta, n, C)[sidecar.thresholds(i, n) > 0] for i, delta in seen.layers.items()]
            line.append(round(float(torch.cat(found).mean()), 3))
        curves["no clamp" if C is None else f"C = {C:.0%}"] = line
    picked = [sidecar.bands[sidecar.band(n)].mass[str(n)] for n in lengths]
    data = {"train_length": L, "lengths": lengths, "published": curves, "picked": picked}
    out.write_text(json.dumps(data) + "\n")
    print(json.dumps(data))
    _, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (label, line), colour in zip(curves.items(), ("0.6", "#e5b96f", "#d9962b")):
        axes.plot(lengths, line, "o-", ms=4, lw=1.6, color=colour, label=f"published fit, {label}")
    axes.plot(lengths, picked, "o-", ms=4, lw=2.4, color="#1f5fa8", label="picked on held-out text")
    axes.set(xscale="log", yscale="log", xlabel="bytes read (times the training length)", ylabel="mass factor m(S)")
    axes.set_xticks(lengths, [f"{n}\n{n // L}x" for n in lengths])
    axes.minorticks_off()
    axes.set_yticks([0.25, 0.5, 1, 2, 4, 8, 16], ["0.25", "0.5", "1", "2", "4", "8", "16"])
    axes.legend(frameon=False)
    axes.set_title("Mass of delta kept, over that of the training length", loc="left")
    plt.savefig(DOCS / "clamp.png", dpi=140)


if __name__ == "__main__":
    main()
