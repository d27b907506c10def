"""One measuring pass: what every candidate is later built from, gathered by watching the plain forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.model import LM
from ..runtime.observer import ScanInputs
from ..runtime.plan import LayerPlan
from .console import progress
from .journal import Journal
from .published_fit import published_g
from .sketch import DeltaSketch, exact_values
from .world import ALONE, World

_TIME_BLOCK = 64  # tokens a (time, D, N) tensor spans: memory, not results
PublishedTable = tuple[Sequence[int], "float | None"]  # lengths at which the published g is fitted, and C


@dataclass
class LayerMeasurement:
    """One layer. What is not an integer is kept by window, so that the aggregate does not depend on their order.

    log_decay: (n, D) float64, log of the cumulative decay over each window
    mean_distance: (n, D) float32, Mamba Mean Distance in tokens
    published: (n, K, D) float64, each window's published g at K lengths; K = 0 unless asked for
    """

    sketch: DeltaSketch
    log_decay: Tensor
    mean_distance: Tensor
    published: Tensor

    def decay(self, aggregate: str = "mean") -> Tensor:
        """log of the mean (or max) over windows of the decay, (D,) float64: logsumexp, not a mean of logs."""
        if aggregate == "max":
            return self.log_decay.amax(0)
        n = torch.tensor(float(len(self.log_decay)), dtype=torch.float64)
        return torch.logsumexp(self.log_decay, 0) - torch.log(n)

    def reach(self) -> Tensor:
        """Mean over windows of each channel's mean distance, (D,) float64 in tokens."""
        return self.mean_distance.double().mean(0)


def log_decay(delta: Tensor, A: Tensor) -> Tensor:
    """log prod_t mean_n exp(delta_t A_n): delta (L, D), A (D, N) -> (D,) float64. Mean over states at each step."""
    total = torch.zeros(delta.shape[1], dtype=torch.float64, device=delta.device)
    for part in delta.split(_TIME_BLOCK):
        total += torch.exp(part[:, :, None] * A).mean(2).double().log().sum(0)
    return total


def mean_distance(delta: Tensor, A: Tensor, B: Tensor, C_last: Tensor) -> Tensor:
    """Mamba Mean Distance of one sequence: sum_j (L-1-j)|M_j| / sum_j |M_j| of each channel, (D,) float64, in tokens.

    M_j = sum_n C_n exp(A_n sum_{k>j} delta_k) delta_j B_jn is the implicit attention of the last token.
    delta (L, D), A (D, N), B (L, N), C_last (N,). A layer's distance is the mean over its channels.
    """
    L, D = delta.shape
    after = delta.flip(0).cumsum(0).flip(0) - delta  # sum of delta over k > j
    weighted = torch.zeros(D, dtype=torch.float64, device=delta.device)
    total = torch.zeros_like(weighted)
    for start in range(0, L, _TIME_BLOCK):
        part = slice(start, start + _TIME_BLOCK)
        M = torch.einsum("ldn,ln->ld", torch.exp(after[part, :, None] * A), B[part] * C_last) * delta[part]
        size = M.abs().double()
        distance = torch.arange(L - 1 - start, L - 1 - start - size.shape[0], -1, device=delta.device)
        weighted += (distance[:, None] * size).sum(0)
        total += size.sum(0)
    return weighted / total.clamp(min=1e-300)


class Measure:
    """The observer. Rows of the batch being read are windows `first`, `first` + 1, ...

    windows: how many there will be; tokens: of all of them; published also fits the published g for each window.
    """

    def __init__(self, lm: LM, windows: int, tokens: int, published: PublishedTable | None = None) -> None:
        self.first = 0
        self._published = published
        values = exact_values(lm.weights.channels * len(lm.weights.layers), tokens)
        self.layers = []
        for layer in lm.weights.layers:
            D = layer.A.shape[0]
            sketch = DeltaSketch.empty(D, values, lm.device)
            decay, distance = torch.zeros(windows, D, dtype=torch.float64), torch.zeros(windows, D)
            g = torch.zeros(windows, len(published[0]) if published else 0, D, dtype=torch.float64)
            self.layers.append(LayerMeasurement(sketch, decay, distance, g))

    def observe(self, layer: int, inputs: ScanInputs) -> LayerPlan | None:
        w, found, A = inputs.weights, self.layers[layer], inputs.weights.A.float()
        delta = F.softplus(inputs.delta.float() + w.dt_bias.float())
        found.sketch.add(delta.flatten(0, 1))
        for row, window in enumerate(range(self.first, self.first + len(delta))):
            found.log_decay[window] = log_decay(delta[row], A)
            found.mean_distance[window] = mean_distance(delta[row], A, inputs.B[row].float(), inputs.C[row, -1].float())
            if self._published is not None:
                lengths, C = self._published
                found.published[window] = torch.stack([published_g(delta[row], S, C) for S in lengths])
        return None


def measure(
    lm: LM, windows: Tensor, batch_tokens: int, published: PublishedTable | None = None, world: World = ALONE
) -> list[LayerMeasurement]:
    """Run windows (n, L) through the plain model and measure every layer. Each rank runs its share of the batches."""
    observer = Measure(lm, len(windows), windows.numel(), published)
    rows = max(1, batch_tokens // windows.shape[1])
    for i, batch in progress(list(world.mine(windows.split(rows))), "measuring", unit="batch"):
        observer.first = i * rows
        lm.prefill(batch, method="none", observer=observer)
    for layer in observer.layers:
        layer.sketch = merge_over(world, layer.sketch)
        for each in (layer.log_decay, layer.mean_distance, layer.published):
            world.total(each)
    return observer.layers


def measured(
    lm: LM, windows: Tensor, batch_tokens: int, published: PublishedTable | None, journal: Journal, world: World
) -> list[LayerMeasurement]:
    """The same, from the journal if an earlier run came that far."""
    found = journal.tensors("measurements")
    if found is None:
        layers = measure(lm, windows, batch_tokens, published, world)
        kept = [(*one.sketch.tensors(), one.log_decay, one.mean_distance, one.published) for one in layers]
        journal.put_tensors("measurements", {f"{i}.{k}": t for i, one in enumerate(kept) for k, t in enumerate(one)})
        return layers
    restored = []
    for i in range(len(lm.weights.layers)):
        *sketch, decay, distance, g = (found[f"{i}.{k}"] for k in range(8))
        restored.append(LayerMeasurement(DeltaSketch.of(sketch, windows.numel()), decay, distance, g))
    return restored


def merge_over(world: World, sketch: DeltaSketch) -> DeltaSketch:
    """One sketch of what all ranks saw, on the CPU."""
    seen = world.gather(torch.tensor([sketch.seen]))
    gathered = zip(*([t.cpu() for t in world.gather(part)] for part in sketch.tensors()))
    first, *others = (DeltaSketch.of(tensors, int(n)) for tensors, n in zip(gathered, seen))
    for other in others:
        first.merge(other)
    return first
