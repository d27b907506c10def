"""One measuring pass: what every candidate is later built from, gathered by watching the plain forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.model import LM
from ..runtime.observer import ScanInputs
from ..runtime.plan import LayerPlan
from .console import progress
from .published_fit import published_g
from .sketch import DeltaSketch

_TIME_BLOCK = 64  # tokens a (time, D, N) tensor spans: memory, not results


@dataclass
class LayerMeasurement:
    """One layer. Per-window values stay per window, so that any order of windows gives the same aggregate."""

    sketch: DeltaSketch
    log_decay: list[Tensor] = field(default_factory=list)  # a window: (D,) float64
    mean_distance: list[float] = field(default_factory=list)  # a window: Mamba Mean Distance in tokens
    published: list[Tensor] = field(default_factory=list)  # a window: (K, D) float64, g at the published lengths

    def decay(self, aggregate: str = "mean") -> Tensor:
        """log of the mean (or max) over windows of the decay, (D,) float64: logsumexp, not a mean of logs."""
        stacked = torch.stack(self.log_decay)
        if aggregate == "max":
            return stacked.amax(0)
        return torch.logsumexp(stacked, 0) - torch.log(torch.tensor(float(len(stacked)), dtype=torch.float64))


def log_decay(delta: Tensor, A: Tensor) -> Tensor:
    """log prod_t mean_n exp(delta_t A_n): delta (L, D), A (D, N) -> (D,) float64. Mean over states at each step."""
    total = torch.zeros(delta.shape[1], dtype=torch.float64, device=delta.device)
    for part in delta.split(_TIME_BLOCK):
        total += torch.exp(part[:, :, None] * A).mean(2).double().log().sum(0)
    return total


def mean_distance(delta: Tensor, A: Tensor, B: Tensor, C_last: Tensor) -> float:
    """Mamba Mean Distance of one sequence, the mean over channels of sum_j (L-1-j)|M_j| / sum_j |M_j|.

    M_j = sum_n C_n exp(A_n sum_{k>j} delta_k) delta_j B_jn is the implicit attention of the last token.
    delta (L, D), A (D, N), B (L, N), C_last (N,).
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
    return float((weighted / total.clamp(min=1e-300)).mean())


class Measure:
    """The observer. `published` = (lengths, C) also fits the published g for each window."""

    def __init__(self, lm: LM, published: tuple[Sequence[int], float | None] | None = None) -> None:
        self.layers = [LayerMeasurement(DeltaSketch.empty(layer.A.shape[0], lm.device)) for layer in lm.weights.layers]
        self._published = published

    def observe(self, layer: int, inputs: ScanInputs) -> LayerPlan | None:
        w, found = inputs.weights, self.layers[layer]
        for row in range(inputs.x.shape[0]):
            delta = F.softplus(inputs.delta[row].float() + w.dt_bias.float())
            A = w.A.float()
            found.sketch.add(delta)
            found.log_decay.append(log_decay(delta, A).cpu())
            found.mean_distance.append(mean_distance(delta, A, inputs.B[row].float(), inputs.C[row, -1].float()))
            if self._published is not None:
                lengths, C = self._published
                found.published.append(torch.stack([published_g(delta, S, C).cpu() for S in lengths]))
        return None


def measure(
    lm: LM, windows: Tensor, batch_tokens: int, published: tuple[Sequence[int], float | None] | None = None
) -> list[LayerMeasurement]:
    """Run windows (n, L) through the plain model and measure every layer."""
    observer = Measure(lm, published)
    rows = max(1, batch_tokens // windows.shape[1])
    for batch in progress(windows.split(rows), "measuring", unit="batch"):
        lm.prefill(batch, method="none", observer=observer)
    for layer in observer.layers:
        layer.sketch = DeltaSketch(layer.sketch.counts.cpu(), layer.sketch.sums.cpu())
    return observer.layers
