"""One measuring pass: what every candidate is later built from, gathered by watching the plain forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...runtime.model import LM
from ...runtime.reading.observer import ScanInputs
from ...runtime.sidecar.plan import LayerPlan
from ..console import progress
from ..work.journal import Journal
from ..work.processes import ALONE, Processes
from . import mamba2
from .histogram import BINS
from .published_fit import clamp_top, published_g
from .sketch import DeltaSketch, exact_values

# Elements of a (B, tokens, D, N) tensor: as many as a CPU caches, enough to keep a GPU busy.
_ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
_BATCH_ELEMENTS = 2**26  # tokens x d_inner a batch at most
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
    _decays: dict[str, Tensor] = field(default_factory=dict)

    def decay(self, aggregate: str = "mean") -> Tensor:
        """log of the mean (or max) over windows of the decay, (D,) float64: logsumexp, not a mean of logs."""
        if aggregate not in self._decays:
            n = torch.tensor(float(len(self.log_decay)), dtype=torch.float64)
            mean = torch.logsumexp(self.log_decay, 0) - torch.log(n)
            self._decays[aggregate] = self.log_decay.amax(0) if aggregate == "max" else mean
        return self._decays[aggregate]

    def reach(self) -> Tensor:
        """Mean over windows of each channel's mean distance, (D,) float64 in tokens."""
        return self.mean_distance.double().mean(0)


def _time_block(delta: Tensor, A: Tensor) -> int:
    """Tokens a (..., tokens, D, N) tensor spans."""
    elements = _ELEMENTS.get(delta.device.type, _ELEMENTS["cpu"])
    return max(1, elements // (delta.shape[:-2].numel() * A.numel()))


def log_decay(delta: Tensor, A: Tensor) -> Tensor:
    """log prod_t mean_n exp(delta_t A_n): delta (..., L, D), A (D, N) -> (..., D) float64.

    The mean over states is taken at each step, before the product. Mamba-2, A (H,): log exp(A_h sum_t delta_t).
    """
    if A.dim() == 1:
        return mamba2.log_decay(delta, A)
    total = torch.zeros(delta.shape[:-2] + delta.shape[-1:], dtype=torch.float64, device=delta.device)
    for part in delta.split(_time_block(delta, A), -2):
        total += torch.exp(part[..., None] * A).mean(-1).double().log().sum(-2)
    return total


def mean_distance(delta: Tensor, A: Tensor, B: Tensor, C_last: Tensor) -> Tensor:
    """Mamba Mean Distance of each sequence and channel, sum_j (L-1-j)|M_j| / sum_j |M_j|: (..., D) float64, in tokens.

    M_j = sum_n C_n exp(A_n sum_{k>j} delta_k) delta_j B_jn is the implicit attention of the last token.
    delta (..., L, D), A (D, N), B (..., L, N), C_last (..., N); Mamba-2: delta (..., L, H), A (H,), B (..., L, G, N),
    C_last (..., G, N). A layer's distance is the mean over its channels.
    """
    L, block = delta.shape[-2], _time_block(delta, A)
    after = delta.flip(-2).cumsum(-2).flip(-2) - delta  # sum of delta over k > j
    weighted = torch.zeros(delta.shape[:-2] + delta.shape[-1:], dtype=torch.float64, device=delta.device)
    total = torch.zeros_like(weighted)
    for start in range(0, L, block):
        part = slice(start, start + block)
        if A.dim() == 1:
            M = mamba2.attention(after[..., part, :], delta[..., part, :], A, B[..., part, :, :], C_last)
        else:
            decay = torch.exp(after[..., part, :, None] * A)
            reads = B[..., part, :] * C_last[..., None, :]  # C_n B_jn
            M = torch.einsum("...ldn,...ln->...ld", decay, reads) * delta[..., part, :]
        size = M.abs().double()
        distance = torch.arange(L - 1 - start, L - 1 - start - size.shape[-2], -1, device=delta.device)
        weighted += (distance[:, None] * size).sum(-2)
        total += size.sum(-2)
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
            device = layer.A.device
            sketch = DeltaSketch.empty(D, values, device)
            decay = torch.zeros(windows, D, dtype=torch.float64, device=device)
            distance = torch.zeros(windows, D, device=device)
            lengths = len(published[0]) if published else 0
            g = torch.zeros(windows, lengths, D, dtype=torch.float64, device=device)
            self.layers.append(LayerMeasurement(sketch, decay, distance, g))

    def observe(self, layer: int, inputs: ScanInputs) -> LayerPlan | None:
        w, found, A = inputs.weights, self.layers[layer], inputs.weights.A.float()
        delta = w.positive(inputs.delta)
        found.sketch.add(delta.flatten(0, 1))
        rows = slice(self.first, self.first + len(delta))
        clamp = self._published[1] if self._published and A.dim() == 1 else None  # as published, for Mamba-2 alone
        clamped = delta if clamp is None else torch.stack([clamp_top(one, clamp) for one in delta])
        found.log_decay[rows] = log_decay(clamped, A)
        found.mean_distance[rows] = mean_distance(delta, A, inputs.B.float(), inputs.C[:, -1].float())
        if self._published is not None:
            lengths, C = self._published
            for window, one in enumerate(delta, self.first):
                found.published[window] = torch.stack([published_g(one, S, C) for S in lengths])
        return None


def statistics_bytes(lm: LM, windows: Tensor) -> int:
    """What a layer's LayerMeasurement takes, measured on windows (n, L)."""
    values = exact_values(lm.weights.channels * len(lm.weights.layers), windows.numel())
    return lm.weights.channels * (4 * values + 4 * BINS + 16 + 12 * len(windows))


def tokens_a_batch(wanted: int, lm: LM) -> int:
    """The recipe's tokens a batch, fewer for a wide model; nothing else decides, so neither memory nor ranks do."""
    d_inner = 2 * lm.weights.embedding.shape[1]
    return min(wanted, max(1, _BATCH_ELEMENTS // d_inner))


def measure(
    lm: LM, windows: Tensor, batch_tokens: int, published: PublishedTable | None = None, processes: Processes = ALONE
) -> list[LayerMeasurement]:
    """Run windows (n, L) through the plain model and measure every layer. Each rank runs its share of the batches."""
    observer = Measure(lm, len(windows), windows.numel(), published)
    rows = max(1, batch_tokens // windows.shape[1])
    for i, batch in progress(list(processes.mine(windows.split(rows))), "measuring", unit="batch"):
        observer.first = i * rows
        lm.prefill(batch, method="none", observer=observer)
    for layer in observer.layers:
        layer.sketch = merge_over(processes, layer.sketch)
        for name in ("log_decay", "mean_distance", "published"):
            setattr(layer, name, processes.total(getattr(layer, name).cpu()))
    return observer.layers


def measured(
    lm: LM, windows: Tensor, batch_tokens: int, published: PublishedTable | None, journal: Journal, processes: Processes
) -> list[LayerMeasurement]:
    """The same, from the journal if an earlier run came that far."""
    found = journal.tensors("measurements")
    if found is None:
        layers = measure(lm, windows, batch_tokens, published, processes)
        kept = [(*one.sketch.tensors(), one.log_decay, one.mean_distance, one.published) for one in layers]
        journal.put_tensors("measurements", {f"{i}.{k}": t for i, one in enumerate(kept) for k, t in enumerate(one)})
        return layers
    restored = []
    for i, device in enumerate(lm.weights.devices):
        *sketch, decay, distance, g = (found[f"{i}.{k}"] for k in range(8))
        sketch = [t.to(device) for t in sketch]
        restored.append(LayerMeasurement(DeltaSketch.of(sketch, windows.numel()), decay, distance, g))
    return restored


def merge_over(processes: Processes, sketch: DeltaSketch) -> DeltaSketch:
    """One sketch of what all ranks saw, where it was made: thresholds are read off on the device."""
    seen = processes.gather(torch.tensor([sketch.seen]))
    gathered = zip(*(processes.gather(part) for part in sketch.tensors()))
    first, *others = (DeltaSketch.of(tensors, int(n)) for tensors, n in zip(gathered, seen))
    for other in others:
        first.merge(other)
    return first
