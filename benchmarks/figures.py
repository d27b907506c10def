"""Draw the three figures of the README from the JSON in docs/demo.

python benchmarks/figures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[1] / "docs"
DATA = DOCS / "demo"
STYLES = (  # file, method, label, colour
    ("demo", "none", "plain", "0.45"),
    ("paper-longmamba", "auto", "LongMamba as published", "#d9962b"),
    ("paper-decimamba", "auto", "DeciMamba as published", "#8a5fb0"),
    ("demo", "auto", "LongScan (auto)", "#1f5fa8"),
)


def rows(name: str, task: str, method: str) -> list[dict[str, Any]]:
    document = json.loads((DATA / f"{name}-{task}.json").read_text())
    return [row for row in document["rows"] if row["method"] == method]


def perplexity() -> None:
    _, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, method, label, colour in STYLES:
        found = rows(name, "perplexity", method)
        x, y = [r["length"] for r in found], [r["value"] for r in found]
        axes.plot(x, y, "o-", ms=4, color=colour, lw=2.4 if method == "auto" and name == "demo" else 1.6, label=label)
    lengths = [r["length"] for r in rows("demo", "perplexity", "none")]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{n}\n{n // lengths[0]}x" for n in lengths])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [t for t in (4, 4.2, 4.4, 4.6, 4.8, 5, 6, 8, 10, 15, 20, 40, 80, 160) if low <= t <= high]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set(xlabel="bytes read (times the training length)", ylabel="perplexity per byte, same targets")
    axes.axvline(lengths[0], color="0.8", lw=1, zorder=0)
    axes.legend(frameon=False)
    axes.set_title("Reading past the training length", loc="left")
    plt.savefig(DOCS / "perplexity.png", dpi=140)


def passkeys() -> None:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for panel, method, title in zip(panels, ("none", "auto"), ("plain", "calibrated (auto)")):
        found = rows("demo", "passkey", method)
        grid = [[row["depths"][depth] for row in found] for depth in found[0]["depths"]]
        image = panel.imshow(grid, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        for i, line in enumerate(grid):
            for j, share in enumerate(line):
                panel.text(j, i, f"{share:.0%}", ha="center", va="center", fontsize=8, color="white")
        panel.set_xticks(range(len(found)), [f"{row['length'] // found[0]['length']}x" for row in found])
        panel.set_yticks(range(len(grid)), [f"{float(depth):.0%}" for depth in found[0]["depths"]])
        panel.set(xlabel="length, times the training length", title=title)
    panels[0].set_ylabel("depth of the passkey")
    figure.colorbar(image, ax=panels, label="passkeys answered")
    plt.savefig(DOCS / "passkeys.png", dpi=140)


def decay() -> None:
    data = json.loads((DATA / "decay.json").read_text())
    _, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for method, label, colour in (("none", "plain", "0.45"), ("filter", "filtered", "#1f5fa8")):
        low, middle, high = data["quartiles"][method]
        axes.plot(data["positions"], middle, color=colour, lw=2, label=f"{label}: median global channel")
        axes.fill_between(data["positions"], low, high, color=colour, alpha=0.2, lw=0)
    at_L = next(k for k, p in enumerate(data["positions"]) if p >= data["train_length"])
    reached = data["quartiles"]["none"][1][at_L]
    axes.axhline(reached, color="#c1440e", lw=1, ls="--", label="what the plain model reaches at its training length")
    axes.axvline(data["train_length"], color="0.8", lw=1, zorder=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("symlog", linthresh=1)
    ticks = (0, -0.5, -1, -3, -10, -30)
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_ylim(-40, 0.4)
    axes.set(xlabel="position in the text, bytes", ylabel="log of the cumulative decay")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    axes.set_title("What a global channel still remembers of the start (quartiles)", loc="left")
    plt.savefig(DOCS / "decay.png", dpi=140)


if __name__ == "__main__":
    perplexity()
    passkeys()
    decay()
