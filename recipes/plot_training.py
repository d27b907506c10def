"""Draw docs/demo-training.png from recipes/demo_training.jsonl, the record train_demo.py left of the shipped model, and
docs/demo-mamba2-training.png from that of the second.

python recipes/plot_training.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent


def draw(record: str, picture: str) -> None:
    rows = [json.loads(line) for line in (HERE / record).read_text().splitlines()]
    _, (loss, quality) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    text = [(r["tokens"] / 1e6, r["text"]) for r in rows if r.get("text") is not None]
    answers = [(r["tokens"] / 1e6, r["answers"]) for r in rows if r.get("answers") is not None]
    loss.plot(*zip(*answers), lw=0.9, color="#c1440e", label="answers: recall, passkeys")
    loss.plot(*zip(*text), lw=0.9, color="#1f5fa8", label="running text")
    for row in rows:
        if row.get("stage") == "recall":
            loss.axvline(row["tokens"] / 1e6, color="0.8", lw=0.8, zorder=0)
    loss.set(xlabel="bytes trained on (millions)", ylabel="loss, nats per byte", yscale="log")
    loss.set_title("training loss; grey: next level of the recall curriculum", fontsize=10)
    loss.legend(frameon=False, fontsize=9)
    seen = [r for r in rows if "bits_per_byte" in r]
    at = [r["tokens"] / 1e6 for r in seen]
    quality.plot(at, [r["bits_per_byte"] for r in seen], "o-", ms=3, color="#1f5fa8")
    quality.set(xlabel="bytes trained on (millions)", ylabel="bits per byte, held-out novel")
    share = quality.twinx()
    share.plot(at, [sum(r["passkeys"]) / 5 for r in seen], "s-", ms=3, color="#c1440e")
    share.set(ylabel="passkeys answered at 256 bytes", ylim=(0, 1.05))
    quality.set_title("evaluation text (never trained on)", fontsize=10)
    plt.savefig(HERE.parent / "docs" / picture, dpi=130)


if __name__ == "__main__":
    draw("demo_training.jsonl", "demo-training.png")
    draw("demo_mamba2_training.jsonl", "demo-mamba2-training.png")
