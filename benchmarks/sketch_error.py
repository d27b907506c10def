"""How well sketches stand in for delta: every channel of a random checkpoint, on the windows fitted and on others.

    python benchmarks/sketch_error.py [--d-model 2048] [--layers 48] [--windows 32] [--text] [--out FILE]

The checkpoint has mamba-1.4b's shape (48 layers of 4096 channels) and reads windows of 2048 tokens: random ones, or
with --text the bundled calibration text in that model's tokens. Layer by layer, keeping only the residual streams:
delta of half the windows is sketched as `calibrate run` does for a model of that size (so many largest values a
channel, the rest in bins), and g from the sketch, as a sidecar stores it, is held against the exact g of the same
values. What the two keep, of those windows and of the other half, must agree to 1% or one token's mass.

In a text the same four tokens come again and again, and give the first layer's channels the very same delta each time.
No threshold parts such tokens; where they weigh more than 1% of what is kept, sketch and exact rule may take sides
differently. Random tokens have none.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from pathlib import Path

import numpy as np
import torch
from record import keep
from shapes import VOCABULARY, write_state_spaces
from torch import Tensor
from tqdm import tqdm

from longscan.calibrate.measure.sketch import DeltaSketch, exact_values
from longscan.runtime import LM, load
from longscan.runtime.checkpoint.tokenizer import plain_ids, read_tokenizer
from longscan.runtime.reading.forward import Stream, embed, run_layers
from longscan.runtime.reading.observer import ScanInputs
from longscan.runtime.sidecar.plan import PLAIN

ROOT = Path(__file__).resolve().parents[1]
TEXT, TOKENIZER = ROOT / "calibrate" / "demo" / "calibration.txt", ROOT / "tests" / "data" / "gpt-neox-20b.json.gz"
SHARES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
WINDOW, CHANNELS = 2048, 48 * 4096
PIECE = 256  # channels looked at together


class Watch:
    """Observer: the delta of the one layer that is run."""

    delta: Tensor

    def observe(self, layer: int, inputs: ScanInputs) -> None:
        self.delta = inputs.weights.positive(inputs.delta)[0]


class Values:
    """Sorted values (D, T) float32 and what `> g` keeps of them."""

    def __init__(self, delta: Tensor) -> None:
        self.ascending = torch.from_numpy(np.sort(delta.numpy(), 1))
        self.sums = torch.cat([torch.zeros(len(delta), 1), self.ascending.flip(1)], 1).double().cumsum(1)

    def exact_g(self, share: float) -> Tensor:
        """The published rule: values sorted descending, k = (first index whose cumsum exceeds the share) + 1."""
        k = torch.searchsorted(self.sums[:, 1:].contiguous(), share * self.sums[:, -1:], right=True) + 1
        return self.ascending.gather(1, (self.ascending.shape[1] - 1 - k).clamp(min=0))[:, 0]

    def kept(self, g: Tensor) -> Tensor:
        """Mass of the values > g, (D,) float64."""
        above = self.ascending.shape[1] - torch.searchsorted(self.ascending, g[:, None].contiguous(), right=True)
        return self.sums.gather(1, above)[:, 0]


def tokens(count: int, text: bool) -> Tensor:
    """Ids (count,): of the bundled text's beginning, or drawn at random."""
    if not text:
        return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(0))
    [ids] = plain_ids(read_tokenizer(gzip.decompress(TOKENIZER.read_bytes())), [TEXT.read_text(encoding="utf-8")])
    if len(ids) < count:
        raise SystemExit(f"Error: the text has {len(ids):,} tokens, {len(ids) // WINDOW} windows; ask for no more")
    return torch.tensor(ids[:count])


def layer_delta(lm: LM, layer: int, streams: list[Stream]) -> list[Tensor]:
    """delta (D, L) of every stream in one layer; the streams move on past it."""
    found = []
    for k, stream in enumerate(streams):
        watch = Watch()
        plans = [PLAIN] * len(lm.weights.layers)
        streams[k] = run_layers(
            lm.weights, lm.config, stream, lm.new_state(1), plans, first=layer, stop=layer + 1, observer=watch
        )
        found.append(watch.delta.T.contiguous())
    return found


def errors(fitted: list[Tensor], other: list[Tensor]) -> Tensor:
    """Difference in kept mass over what is allowed, (shares, 2, D): on the windows fitted, on the others."""
    sketch = DeltaSketch.empty(len(fitted[0]), exact_values(CHANNELS, 64 * WINDOW))
    for delta in fitted:
        sketch.add(delta.T)
    g = sketch.threshold(torch.tensor(SHARES, dtype=torch.float64)[:, None].expand(-1, len(fitted[0]))).float()
    found = []
    for start in range(0, g.shape[1], PIECE):
        piece = slice(start, start + PIECE)
        halves = [Values(torch.cat([delta[piece] for delta in half], 1)) for half in (fitted, other)]
        rows = []
        for i, share in enumerate(SHARES):
            mine, exact = g[i, piece], halves[0].exact_g(share)
            one_token = torch.maximum(mine, exact).double()
            pairs = [(half.kept(mine), half.kept(exact)) for half in halves]
            rows.append(torch.stack([(m - e).abs() / torch.maximum(0.01 * e, one_token) for m, e in pairs]))
        found.append(torch.stack(rows))
    return torch.cat(found, 2)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=2048, help="half the channels of a layer")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--windows", type=int, default=32, help="in all; every second one is fitted on")
    parser.add_argument("--text", action="store_true", help="read the bundled text, not random tokens")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the forward")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_state_spaces(Path(folder), args.d_model, args.layers, VOCABULARY)
        lm = load(folder, dtype=getattr(torch, args.dtype))
    windows = tokens(args.windows * WINDOW, args.text).view(-1, 1, WINDOW)
    streams = [embed(lm.weights, lm.config, ids, lm.new_state(1).length, None) for ids in windows]
    cells, beyond, worst = 0, [], torch.zeros(len(SHARES), 2)
    bar = tqdm(range(args.layers), unit="layer")
    for layer in bar:
        delta = layer_delta(lm, layer, streams)
        found = errors(delta[::2], delta[1::2])
        cells += found.numel()
        beyond.append(int((found > 1).sum()))
        worst = torch.maximum(worst, found.amax(2).float())
        bar.set_postfix(beyond=sum(beyond), worst=f"{worst.max():.2f}")
    document = {
        "text": args.text, "dtype": args.dtype, "layers": args.layers, "channels": 2 * args.d_model,
        "tokens_fitted": windows[::2].numel(), "cells": cells, "beyond_by_layer": beyond,
        "worst": {str(s): row.tolist() for s, row in zip(SHARES, worst)},
    }  # fmt: skip
    for share, row in zip(SHARES, worst):
        print(f"share {share:4.2f}: worst {row[0]:.2f} of what is allowed where fitted, {row[1]:.2f} elsewhere")
    print(f"{sum(beyond)} of {cells:,} channels, shares and halves are beyond 1% or one token's mass", end="")
    print("".join(f", {n} in layer {i}" for i, n in enumerate(beyond) if n))
    keep(args.out, **document)
    raise SystemExit(1 if any(beyond) else 0)


if __name__ == "__main__":
    main()
