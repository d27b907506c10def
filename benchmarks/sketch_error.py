"""How well sketches stand in for delta: every channel of a random checkpoint, on the windows fitted and on others.

    python benchmarks/sketch_error.py [--layers 48] [--channels 4096] [--tokens 262144]

Layer by layer, keeping only the residual stream: delta of half the windows is sketched as `calibrate run` would for a
model of 48 x 4096 channels (so many largest values a channel, the rest in bins), and g from the sketch is held against
the exact g of the same values. What the two keep, of those windows and of the other half, must agree to 1% or one
token's mass. Few tokens are the harder case: their bins are filled less evenly.
"""

from __future__ import annotations

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longscan.calibrate.sketch import DeltaSketch, exact_values
from longscan.kernels import causal_conv1d, selective_scan

SHARES = (0.02, 0.1, 0.3, 0.7)
WINDOW, N = 2048, 16


def random_layer(M: int, D: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights as a Mamba is initialised (dt bias log-uniform in [1e-3, 1e-1], A = -1 ... -N)."""
    R = max(1, D // 32)

    def uniform(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=generator) * 2 - 1) / math.sqrt(shape[-1])

    dt = torch.exp(torch.rand(D, generator=generator) * math.log(100) + math.log(1e-3))
    return {
        "in_proj": uniform(2 * D, M),
        "conv": uniform(D, 4),
        "x_proj": uniform(R + 2 * N, D),
        "dt_proj": (torch.rand(D, R, generator=generator) * 2 - 1) * R**-0.5,
        "dt_bias": dt + torch.log(-torch.expm1(-dt)),
        "A": -torch.arange(1.0, N + 1).expand(D, N).contiguous(),
        "out_proj": uniform(M, D),
    }


def through(w: dict[str, Tensor], residual: Tensor) -> tuple[Tensor, Tensor]:
    """One layer: residual (1, L, M) -> delta (L, D) after bias and softplus, residual."""
    hidden = F.normalize(residual, dim=-1) * math.sqrt(residual.shape[-1])
    x, z = F.linear(hidden, w["in_proj"]).chunk(2, -1)
    x, _ = causal_conv1d(x.contiguous(), w["conv"], None)
    low, B, C = F.linear(x, w["x_proj"]).split([w["dt_proj"].shape[1], N, N], -1)
    delta = F.linear(low, w["dt_proj"])
    y, _ = selective_scan(x, delta, w["A"], B.contiguous(), C.contiguous(), z=z.contiguous(), delta_bias=w["dt_bias"])
    return F.softplus(delta[0] + w["dt_bias"]), residual + F.linear(y, w["out_proj"])


def exact_g(ordered: Tensor, share: float) -> Tensor:
    """The published rule on values (T, D) sorted descending: k = (first index whose cumsum exceeds the share) + 1."""
    sums = ordered.double().cumsum(0)
    k = ((sums <= share * sums[-1]).sum(0) + 1).clamp(max=len(ordered) - 1)
    return ordered.gather(0, k[None])[0].double()


def kept(delta: Tensor, g: Tensor) -> Tensor:
    return torch.where(delta > g, delta, 0.0).double().sum(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--channels", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=262144, help="in all; half of them are fitted on")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    M = args.channels // 32
    streams = [torch.randn(1, WINDOW, M, generator=generator) for _ in range(args.tokens // WINDOW)]
    values = exact_values(48 * 4096, 64 * 2048)
    beyond, cells, worst = 0, 0, 0.0
    for layer in range(args.layers):
        w = random_layer(M, args.channels, generator)
        found = []
        for k, stream in enumerate(streams):
            delta, streams[k] = through(w, stream)
            found.append(delta)
        fitted, other = torch.cat(found[::2]), torch.cat(found[1::2])
        sketch = DeltaSketch.empty(args.channels, values)
        for delta in found[::2]:
            sketch.add(delta)
        ordered = fitted.sort(0, descending=True).values
        for share in SHARES:
            g, wanted = sketch.threshold(share), exact_g(ordered, share)
            for delta in (fitted, other):
                ours, right = kept(delta, g), kept(delta, wanted)
                off = (ours - right).abs()
                allowed = torch.maximum(0.01 * right, torch.maximum(g, wanted) * (1 + 2**-5))
                beyond += int((off > allowed).sum())
                worst = max(worst, float((off / allowed).max()))
                cells += args.channels
        print(f"layer {layer}: {beyond} of {cells} beyond, worst {worst:.2f} of what is allowed", flush=True)
    print(f"{beyond} of {cells} channels, shares and halves beyond 1% or one token's mass")
    raise SystemExit(1 if beyond else 0)


if __name__ == "__main__":
    main()
