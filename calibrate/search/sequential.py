"""Sequential fits: g of a layer from its delta at the real length, with the layers below already filtered.

One sweep a candidate and length, layer after layer; only the residual streams are kept. The goal is the papers',
without their assumption that delta at length S is distributed as at L: a window of S tokens keeps `share * S` times the
mean delta of the training length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from ...runtime.model import LM
from ...runtime.reading.forward import embed, run_layers
from ...runtime.reading.observer import ScanInputs
from ...runtime.reading.reservoir import select
from ...runtime.sidecar.plan import PLAIN, LayerPlan
from ...runtime.sidecar.sidecar import canonical
from ..measure.measuring import LayerMeasurement, merge_over
from ..measure.sketch import DeltaSketch, exact_values
from ..texts.windows import token_windows
from ..work.journal import Journal
from ..work.processes import ALONE, Processes
from .candidates import DecimatePick, FilterPick
from .channels import global_channels, score_weights

_SWEEP = "sweep "  # begins a sweep's key in the journal


class _Watch:
    """Observer: sketches the delta that one layer's scan is about to read, after its own decimation."""

    def __init__(self, sketch: DeltaSketch, plan: LayerPlan, backend: str) -> None:
        self.sketch, self._plan, self._backend = sketch, plan, backend

    def observe(self, layer: int, inputs: ScanInputs) -> LayerPlan | None:
        w, delta = inputs.weights, inputs.delta
        if self._plan.keep is not None:
            score = w.scores(delta, self._plan.score_weight, self._backend)
            index = select(score, self._plan.keep, 1)
            delta = delta.gather(1, index[:, :, None].expand(-1, -1, delta.shape[2]))
        self.sketch.add(w.positive(delta).flatten(0, 1))
        return None


@dataclass
class Sweeper:
    """Makes and remembers sequential tables. documents: token ids of the texts g is fitted on."""

    lm: LM
    layers: Sequence[LayerMeasurement]
    documents: Sequence[Tensor]
    tokens: int  # of one sweep, about; at least two windows are read
    batch_tokens: int
    seed: int
    journal: Journal
    processes: Processes = ALONE
    _made: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, pick: FilterPick, decimate: DecimatePick | None, share: float, length: int) -> Tensor:
        """g at a length with a share in place of the pick's own: (n_layer, D) float32."""
        key = _SWEEP + canonical([asdict(replace(pick, share=share)), asdict(decimate) if decimate else None, length])
        if key not in self._made:
            count = max(2, round(self.tokens / length))
            windows = token_windows(self.documents, length, count, tail=length, seed=self.seed)
            if self.journal.get(key) is None:
                self.journal.put(key, 2 * windows.numel() * len(self.layers))
            found = self.journal.tensors(key)
            if found is None:
                g = sweep(self.lm, self.layers, pick, decimate, share, windows, self.batch_tokens, self.processes)
                found = {"g": g}
                self.journal.put_tensors(key, found)
            self._made[key] = found["g"]
        return self._made[key]

    @property
    def token_layers(self) -> int:
        """Cost so far, tokens x layers, with that of sweeps an interrupted run made and scored."""
        return sum(self.journal.all(_SWEEP))


@torch.inference_mode()
def sweep(
    lm: LM,
    layers: Sequence[LayerMeasurement],
    pick: FilterPick,
    decimate: DecimatePick | None,
    share: float,
    windows: Tensor,
    batch_tokens: int,
    processes: Processes = ALONE,
) -> Tensor:
    """g at the length of windows (n, S): (n_layer, D) float32, 0 in local channels and layers not filtered.

    Each layer is run twice, to measure and to go on; `share` takes the place of the pick's own.
    """
    n, S = windows.shape
    keep = dict(zip(decimate.layers, decimate.keep())) if decimate else {}
    batches = [batch for _, batch in processes.mine(windows.to(lm.device).split(max(1, batch_tokens // S)))]
    states = [lm.new_state(len(batch)) for batch in batches]
    streams = [embed(lm.weights, lm.config, batch, state.length, None) for batch, state in zip(batches, states)]
    plans = [PLAIN] * len(layers)
    table = torch.zeros(len(layers), lm.weights.channels)
    values = exact_values(lm.weights.channels * len(layers), n * S)

    def through(layer: int, k: int, watch: _Watch | None) -> None:
        state = lm.new_state(len(batches[k])) if watch else states[k]  # measuring leaves no trace
        found = run_layers(
            lm.weights, lm.config, streams[k], state, plans, first=layer, stop=layer + 1, observer=watch,
            backend=lm.backend,
        )  # fmt: skip
        if watch is None:
            streams[k] = found

    for i, layer in enumerate(layers):
        plan = PLAIN
        if i in keep and decimate:
            plan = LayerPlan(keep=keep[i], score_weight=score_weights(layer, decimate.score).to(lm.device))
        if i in pick.layers:
            watch = _Watch(DeltaSketch.empty(table.shape[1], values, lm.device), plan, lm.backend)
            for k in range(len(batches)):
                through(i, k, watch)
            sketch = merge_over(processes, watch.sketch)
            wanted = min(1.0, share) * S * layer.sketch.mean()  # a window's mass to keep, (D,)
            g = sketch.threshold(wanted * n / sketch.total().clamp(min=1e-300)).float().cpu()
            table[i] = torch.where(global_channels(layer, pick.log_theta), g, 0.0)
            plan = LayerPlan(threshold=table[i].to(lm.device), keep=plan.keep, score_weight=plan.score_weight)
        plans[i] = plan
        for k in range(len(batches)):
            through(i, k, None)
    return table
