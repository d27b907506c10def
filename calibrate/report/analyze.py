"""`report --analyze`: the model read once more at several times its training length, watched layer by layer.

    L tokens   D channels   N states   Q sampled queries   K bins of keys

Implicit attention of one channel: M_ij = sum_n C_in exp(A_n sum_{j<k<=i} delta_k) delta_j B_jn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from ...runtime.model import LM
from ...runtime.reading.observer import ScanInputs
from ...runtime.sidecar.plan import LayerPlan
from ..console import progress
from ..errors import UserError
from ..evaluate.evaluate import available
from ..measure.mamba2 import of_channel
from ..measure.measuring import log_decay, mean_distance

FACTOR = 8  # the papers look at L and at 8 L
GRID = 96  # queries and bins of keys of an attention map
FLOOR = 1e-3  # scores below this share of a query's largest are outside the receptive field
_CHUNK = 4096  # keys a temporary spans
_SHORT, _LONG = 16, 4  # windows read of L and of FACTOR * L tokens


@dataclass
class AttentionMap:
    """One channel at one length. strength (Q, K): the largest |M| in each bin of keys over the query's largest.

    reach (Q,): how far back the query's scores stay at or above FLOOR of its largest, in tokens.
    """

    layer: int
    channel: int
    log_decay: float  # over the training length
    length: int
    queries: Tensor
    strength: Tensor
    reach: Tensor


@dataclass
class Analysis:
    """What the report draws. distances: length -> one value a layer, in tokens, mean over windows."""

    train_length: int
    distances: dict[int, list[float]] = field(default_factory=dict)
    maps: list[AttentionMap] = field(default_factory=list)
    passed: list[int | None] = field(default_factory=list)  # a layer: tokens read when sum of delta passes training's
    read: int = 0  # length of the long reading
    times: list[tuple[int, str, float]] = field(default_factory=list)  # (length, method, seconds)


def attention_map(
    delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, layer: int, channel: int, log_decay: float
) -> AttentionMap:
    """delta (L,), A (N,), B (L, N), C (L, N) of one channel -> its map on a GRID x GRID raster."""
    L = len(delta)
    total = delta.double().cumsum(0)
    queries = torch.linspace(max(1, L // GRID) - 1, L - 1, min(GRID, L)).round().long()
    edges = torch.linspace(0, L, min(GRID, L) + 1).round().long()
    bins = torch.bucketize(torch.arange(L), edges[1:], right=True)
    strength, reach = torch.zeros(len(queries), len(edges) - 1), torch.zeros(len(queries), dtype=torch.int64)
    for row, i in enumerate(queries.tolist()):
        size = torch.empty(i + 1)
        for start in range(0, i + 1, _CHUNK):
            part = slice(start, min(start + _CHUNK, i + 1))
            decay = torch.exp((total[i] - total[part]).float()[:, None] * A)
            size[part] = ((decay * B[part] * C[i]).sum(1) * delta[part]).abs()
        size = size / size.max().clamp(min=1e-30)
        strength[row].scatter_reduce_(0, bins[: i + 1], size, "amax")
        reach[row] = i - int((size >= FLOOR).nonzero()[0])
    return AttentionMap(layer, channel, log_decay, L, queries, strength, reach)


@dataclass
class Watch:
    """The observer of one window. Short ones: the sums of delta training saw, decays. Long ones: distances of their
    prefixes and, of the first, running sums of delta and maps of sample channels."""

    analysis: Analysis
    limits: list[float]  # the largest sum of delta of each layer so far
    samples: dict[int, list[int]]  # layer -> channels
    short: bool
    share: int = 1  # windows to take the mean over
    decays: list[Tensor] = field(default_factory=list)

    def observe(self, layer: int, inputs: ScanInputs) -> LayerPlan | None:
        found, w = self.analysis, inputs.weights
        delta = w.positive(inputs.delta[0])
        A, B, C = w.A.float(), inputs.B[0].float(), inputs.C[0].float()
        running = delta.double().sum(1).cumsum(0)
        if self.short:
            self.limits[layer] = max(self.limits[layer], float(running[-1]))
            self.decays.append(log_decay(delta, A).cpu())
            return None
        for length, by_layer in found.distances.items():
            value = float(mean_distance(delta[:length], A, B[:length], C[length - 1]).mean())
            by_layer[layer] += value / self.share
        if len(found.passed) > layer:
            return None  # the first long window has been here
        over = (running > self.limits[layer]).nonzero()
        found.passed.append(int(over[0]) + 1 if len(over) else None)
        for channel in self.samples.get(layer, []):
            decay = float(log_decay(delta[: found.train_length, channel : channel + 1], A[channel : channel + 1]))
            for length in (found.train_length, len(delta)):
                a, b, c = (t.cpu() for t in of_channel(A, B[:length], C[:length], channel))
                one = delta[:length, channel].cpu()
                found.maps.append(attention_map(one, a, b, c, layer=layer, channel=channel, log_decay=decay))
        return None


def analyze(lm: LM, documents: Sequence[Tensor], lengths: Sequence[int], samples: int = 4) -> Analysis:
    """Read windows of L and of FACTOR * L tokens plainly, and time prefill at `lengths` with every method.

    documents: token ids. Raises UserError where no text is long enough.
    """
    assert lm.sidecar is not None
    L, n_layer = lm.sidecar.train_length, len(lm.weights.layers)
    long = FACTOR * L
    longest = max(documents, key=len)
    if len(longest) < long:
        raise UserError(
            f"--analyze reads {long} tokens in a row and the longest text has {len(longest)}; give longer --texts"
        )
    analysis = Analysis(L, {n: [0.0] * n_layer for n in (L // 2, L, 2 * L, 4 * L, long)}, read=long)
    limits = [0.0] * n_layer
    watch = Watch(analysis, limits, {}, short=True)
    for window in progress(_cut(documents, L, _SHORT), "reading at the training length", unit="window"):
        lm.prefill(window[None], method="none", observer=watch)
    decays = [torch.stack(watch.decays[layer::n_layer]).mean(0) for layer in range(n_layer)]
    windows = _cut(documents, long, _LONG)
    watch = Watch(analysis, limits, sample_channels(decays, samples), short=False, share=len(windows))
    for window in progress(windows, "reading far beyond it", unit="window"):
        lm.prefill(window[None], method="none", observer=watch)
    analysis.maps.sort(key=lambda m: (-m.log_decay, m.layer, m.channel, m.length))
    analysis.times = prefill_times(lm, longest, lengths)
    return analysis


def _cut(documents: Sequence[Tensor], length: int, most: int) -> list[Tensor]:
    """The first windows of the documents, at most `most`, that do not overlap."""
    starts = ((doc, start) for doc in documents for start in range(0, len(doc) - length + 1, length))
    return [doc[start : start + length] for doc, start in islice(starts, most)]


def sample_channels(decays: Sequence[Tensor], count: int) -> dict[int, list[int]]:
    """layer -> channels: `count` of the whole model, evenly spread over the order of their cumulative decay."""
    joined = torch.cat(list(decays))
    order = joined.argsort(descending=True)
    places = torch.linspace(0, len(order) - 1, count).round().long()
    D = len(decays[0])
    found: dict[int, list[int]] = {}
    for index in order[places].tolist():
        found.setdefault(index // D, []).append(index % D)
    return found


def prefill_times(lm: LM, document: Tensor, lengths: Sequence[int]) -> list[tuple[int, str, float]]:
    """(length, method, seconds): the fastest of three readings of one prompt, after one to warm up."""
    fits = [n for n in lengths if n <= len(document)]
    jobs = [(n, method) for n in fits for method in available(lm, fits) if method != "auto"]
    found = []
    for length, method in progress(jobs, "timing prefill", unit="cell"):
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            lm.prefill(document[None, :length], method=method).logits.sum().item()  # waits for the device
            seconds.append(time.perf_counter() - began)
        found.append((length, method, min(seconds[1:])))
    return found
