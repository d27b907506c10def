"""The one forward pass: residual stream in, residual stream out, states updated in place.

    B batch   L tokens entering a layer   K tokens leaving it (K < L only where it decimates)
    M d_model   V vocabulary

One layer, whatever its family (see layer.py, mamba1.py, mamba2.py); delta = 0 makes a token invisible to the state:

    x, delta, B, C, z = inputs(norm(residual))          projections and convolution
    residual          = residual + scan(x, delta, B, C, z)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import add_rms_norm, linear, rms_norm
from ...kernels.linear.api import FEW
from ...kernels.shared.dispatch import on_triton
from ..checkpoint.config import ModelConfig
from ..families.layer import Inputs, Norm
from ..families.weights import Weights
from ..sidecar.plan import PLAIN, LayerPlan
from .observer import Observer, ScanInputs
from .reservoir import Tokens, merge
from .state import Draft, State


@dataclass(frozen=True)
class Stream:
    """The tokens still present: residual (B, K, M), each token's place in its prompt (B, K), mask (B, K) or None.

    hidden: the residual's norm for the next layer, where adding to the residual has made it already
    """

    residual: Tensor
    positions: Tensor
    mask: Tensor | None
    hidden: Tensor | None = None


def embed(weights: Weights, config: ModelConfig, ids: Tensor, first: Tensor, mask: Tensor | None) -> Stream:
    """ids (B, L) -> Stream. `first` (B,) is the number of tokens each row has read before these."""
    residual = F.embedding(ids, weights.embedding)
    if config.residual_in_fp32 and residual.dtype != torch.float64:
        residual = residual.float()
    if mask is None:
        offsets = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    else:
        offsets = mask.long().cumsum(1) - 1
    positions = first.to(ids.device)[:, None] + offsets
    return Stream(residual, positions if mask is None else positions.where(mask, -1), mask)


def norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, config: ModelConfig, dtype: torch.dtype, backend: str
) -> Tensor:
    """RMSNorm (or LayerNorm, for the models that use it) computed in float32, returned in the weights' dtype."""
    if config.rms_norm:
        return rms_norm(x, weight, config.norm_epsilon, dtype, backend=backend)
    return F.layer_norm(x.to(weight.dtype), weight.shape, weight, bias, config.norm_epsilon).to(dtype)


def _before(i: int, weights: Weights, config: ModelConfig, residual: Tensor, backend: str) -> Tensor:
    """What layer i reads."""
    before = weights.norms[i]
    return norm(residual, before.weight, before.bias, config, before.dtype, backend)


def _add(
    residual: Tensor, out: Tensor, following: Norm | None, config: ModelConfig, backend: str
) -> tuple[Tensor, Tensor | None]:
    """residual + out, and on a GPU, made in the same pass, what the following layer reads; else None."""
    if following is None or not config.rms_norm or not on_triton(backend, out, residual):
        return residual + out, None
    hidden, residual = add_rms_norm(
        residual, out, following.weight, config.norm_epsilon, following.dtype, backend=backend
    )
    return residual, hidden


def run_layers(
    weights: Weights,
    config: ModelConfig,
    stream: Stream,
    state: State,
    plans: Sequence[LayerPlan],
    *,
    protected: int = 1,
    first: int = 0,
    stop: int | None = None,
    observer: Observer | None = None,
    backend: str = "auto",
    final: bool = True,
    piece: int | None = None,
) -> Stream:
    """Layers first ... stop - 1 over a chunk. `state` is updated in place, at the end; `plans` has one entry a layer.

    A decimating layer passes nothing on until the prompt's last chunk (`final`) has entered it: its candidates wait
    in `state.reservoirs`. Then it scans the survivors and passes them on as a shorter stream, `piece` tokens at a time
    (None: at once), so that the layers above never hold more than that.
    """
    draft = Draft(state)
    stop = len(weights.layers) if stop is None else stop
    out = _Pass(weights, config, draft, plans, protected, stop, observer, backend, piece).run(stream, first, final)
    draft.commit()
    return out


@dataclass(frozen=True)
class _Pass:
    """What stays the same while a chunk goes through the layers."""

    weights: Weights
    config: ModelConfig
    draft: Draft
    plans: Sequence[LayerPlan]
    protected: int
    stop: int
    observer: Observer | None
    backend: str
    piece: int | None

    def run(self, stream: Stream, first: int, final: bool) -> Stream:
        for i in range(first, self.stop):
            layer, mask = self.weights.layers[i], stream.mask
            plan, tokens = self._scan_inputs(i, stream)
            stream = replace(stream, hidden=None)  # else it would live on through the scan
            if plan.keep is None:
                stream = self._scan(i, tokens, mask, plan)
                del tokens  # else they would live on through the next layer's projections
                continue
            if mask is not None:
                raise ValueError("padded rows cannot be decimated in one batch; prefill rows of equal length together")
            score = layer.scores(tokens.delta, plan.score_weight, self.backend)
            waiting = self.draft.reservoirs.pop(i, ())
            waiting = merge(waiting, tokens._replace(score=score), plan.keep, self.protected, final=final)
            if not final:
                self.draft.reservoirs[i] = waiting
                return Stream(stream.residual[:, :0], stream.positions[:, :0], None)
            (survivors,) = waiting
            K = survivors.score.shape[1]
            size = self.piece or K
            streams = []
            for start in range(0, K, size):
                short = self._scan(i, survivors.part(start, start + size), None, plan)
                streams.append(self.run(short, i + 1, start + size >= K))
            return join(streams)
        return stream

    def _scan_inputs(self, i: int, stream: Stream) -> tuple[LayerPlan, Tokens]:
        """Everything before the scan; the tokens are not scored yet (their `score` is empty)."""
        layer, plan, hidden = self.weights.layers[i], self.plans[i], stream.hidden
        if hidden is None:
            hidden = _before(i, self.weights, self.config, stream.residual, self.backend)
        inputs, conv = layer.inputs(hidden, self.draft.conv(i), stream.mask, self.backend)
        self.draft.convolved(i, conv)
        if self.observer is not None:
            plan = self.observer.observe(i, ScanInputs.of(layer, plan, inputs, stream.mask)) or plan
        return plan, Tokens(inputs.delta.new_empty(0), stream.positions, stream.residual, *inputs)

    def _scan(self, i: int, tokens: Tokens, mask: Tensor | None, plan: LayerPlan) -> Stream:
        """The scan and what follows it, over tokens in time order."""
        out, ssm = self.weights.layers[i].scan(Inputs(*tokens[3:]), plan, mask, self.draft.ssm(i), self.backend)
        self.draft.scanned(i, ssm)
        following = self.weights.norms[i + 1] if i + 1 < self.stop else None
        residual, hidden = _add(tokens.residual, out, following, self.config, self.backend)
        return Stream(residual, tokens.positions, mask, hidden)


def join(streams: Sequence[Stream]) -> Stream:
    """Streams that follow one another, as one."""
    if len(streams) == 1:
        return streams[0]
    mask = None if streams[0].mask is None else torch.cat([s.mask for s in streams if s.mask is not None], 1)
    return Stream(torch.cat([s.residual for s in streams], 1), torch.cat([s.positions for s in streams], 1), mask)


def logits(weights: Weights, config: ModelConfig, residual: Tensor, backend: str = "auto") -> Tensor:
    """Final norm and head: (..., M) -> (..., V) float32 (float64 for a float64 model)."""
    hidden = norm(residual, weights.norm, weights.norm_bias, config, weights.head.dtype, backend)
    out = linear(hidden, weights.head, backend=backend)
    return out if out.dtype == torch.float64 else out.float()


def step_layers(
    weights: Weights,
    config: ModelConfig,
    token: Tensor,
    state: State,
    backend: str = "auto",
    plans: Sequence[LayerPlan] | None = None,
) -> Tensor:
    """One token a row, (B,) -> logits (B, V); the recurrent form of the same equations. Updates `state` in place.

    plans: one a layer, of which only filter and scale matter here; None = unfiltered.
    """
    residual = F.embedding(token, weights.embedding)
    blocks = weights.blocks if backend in ("auto", "cpu") and config.rms_norm and state.batch <= FEW else None
    if blocks is not None:
        return logits(weights, config, _step_blocks(blocks, config, residual.float(), state, plans), backend)
    if config.residual_in_fp32 and residual.dtype != torch.float64:
        residual = residual.float()
    hidden: Tensor | None = None
    for i, (layer, following) in enumerate(zip(weights.layers, (*weights.norms[1:], None))):
        plan = PLAIN if plans is None else plans[i]
        hidden = _before(i, weights, config, residual, backend) if hidden is None else hidden
        out = layer.step(hidden, state.conv[i], state.ssm[i], plan, backend)
        residual, hidden = _add(residual, out, following, config, backend)
    return logits(weights, config, residual, backend)


def _step_blocks(
    blocks: Sequence[tuple[Any, ...]],
    config: ModelConfig,
    residual: Tensor,
    state: State,
    plans: Sequence[LayerPlan] | None,
) -> Tensor:
    """The same on a CPU, a block a call: residual (B, M) float32, whatever the model's dtype, as is all between."""
    from ...kernels.block.cpu import mamba1_step  # needs numba

    conv = state.conv.float()  # the state's own tensor in a float32 model
    for i, block in enumerate(blocks):
        plan = PLAIN if plans is None else plans[i]
        mamba1_step(block, config.norm_epsilon, residual, conv[i], state.ssm[i], plan.threshold, plan.scale)
    if conv is not state.conv:
        state.conv.copy_(conv)
    return residual
