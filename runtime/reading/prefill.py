"""Prefill: which plan a prompt gets, then one loop over its chunks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint.config import ModelConfig
from ..families.weights import Weights
from ..sidecar.plan import Plan
from ..sidecar.sidecar import Sidecar
from .chunks import is_out_of_memory, pick_chunk
from .forward import Stream, embed, join, logits, run_layers
from .growth import Growth
from .observer import Observer
from .padding import Padding
from .plans import layer_plans, plan_at
from .state import State

_log = logging.getLogger("longscan.runtime")


@dataclass(frozen=True)
class Output:
    """What prefill returns.

    logits: (B, K, V) float32, K = logits_to_keep (fewer if the prompt is shorter; 0 = all tokens still present)
    positions: (B, K) int64, place of each row of logits in its own prompt; -1 = none
    The last tokens of all rows stand together in the last rows of logits; all tokens of an undecimated batch that was
    padded on the right stand where they were given.
    state: State after the prompt
    plan: Plan, or a tuple of plans where rows have unequal lengths
    """

    logits: Tensor
    positions: Tensor
    state: State
    plan: Plan | tuple[Plan, ...]


def in_given_columns(out: Output, padding: Padding | None) -> Output:
    """The rows of logits of all tokens where the ids were given, for prompts padded on the right; zeros at padding."""
    if padding is None or padding.shift is None:
        return out
    cut = padding.mask.shape[1] - out.positions.shape[1]
    logits, positions = F.pad(out.logits, (0, 0, cut, 0)), F.pad(out.positions, (cut, 0), value=-1)
    logits = logits.masked_fill(~padding.mask[:, :, None], 0.0)
    return replace(out, logits=padding.back(logits), positions=padding.back(positions))


@dataclass(frozen=True)
class Reading:
    """What stays the same during a call: the model, and what the call asks for (see LM.prefill).

    growth: of the sidecar; None without one. fresh: nothing was read into the state before.
    """

    weights: Weights
    config: ModelConfig
    sidecar: Sidecar | None
    growth: Growth | None
    backend: str
    fresh: bool
    method: str
    total_length: float | None
    chunk: int | None
    logits_to_keep: int
    observer: Observer | None
    on_chunk: Callable[[int], None] | None


def prefill(reading: Reading, ids: Tensor, mask: Tensor | None, state: State) -> Output:
    """Read checked `ids` (B, L), left-padded where `mask` (B, L) says so, into `state`, in place."""
    L, weights, observer, wanted = ids.shape[1], reading.weights, reading.observer, reading.logits_to_keep
    plan_prompt(
        reading.sidecar, ids, mask, state, reading.fresh, reading.total_length, reading.method, max(1, wanted)
    )  # fmt: skip
    chunk = reading.chunk
    if chunk is None:  # an observer's sums must not depend on the machine's memory
        chunk = L if observer is not None else pick_chunk(weights, ids.shape[0])
    growing = reading.growth if state.total is not None and math.isinf(state.total) else None
    resolved = [] if growing else layer_plans(state.plans, reading.sidecar, weights, state.protected)
    on_cpu = None if mask is None else mask.cpu()
    start = 0
    pieces: list[Stream] = []
    while start < L:
        stop = min(start + chunk, L)
        if growing:
            stop = min(stop, _next_change(growing, state, on_cpu, start))
            resolved = growing.layer_plans(state)
        part = slice(start, stop)
        piece_mask = None if mask is None else mask[:, part]
        new = torch.full_like(state.length, stop - start) if on_cpu is None else on_cpu[:, part].sum(1)
        final = stop == L and (state.total is None or bool((state.length + new >= state.total).all()))
        failed = False
        try:
            stream = embed(weights, reading.config, ids[:, part], state.length, piece_mask)
            stream = run_layers(
                weights, reading.config, stream, state, resolved, protected=state.protected, observer=observer,
                backend=reading.backend, final=final, piece=chunk,
            )  # fmt: skip
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or observer is not None or stop - start == 1:
                raise
            failed = True  # the state is as it was before the pass
        if failed:  # outside the handler, so that the failed pass's tensors are gone
            chunk = (stop - start) // 2
            _log.warning("out of memory at %d tokens a pass; going on with %d", stop - start, chunk)
            if ids.device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        state.length += new
        if wanted:  # keep no more residuals than the logits need
            stream = _last(stream, wanted)
            pieces = [_last(join([*pieces, stream]), wanted)]
        else:
            pieces.append(stream)
        start = stop
        if reading.on_chunk is not None:
            reading.on_chunk(int(new.sum()))
    stream = join(pieces)
    if state.total is not None and bool((state.length >= state.total).all()):
        state.total = None  # the promised prompt is complete
    found = logits(weights, reading.config, stream.residual, reading.backend)
    return Output(found, stream.positions, state, state.plan)


def _next_change(growing: Growth, state: State, mask: Tensor | None, start: int) -> int:
    """The column where the next row gets another g."""
    pads = [0] * state.batch if mask is None else (~mask[:, start:]).sum(1).tolist()
    return min(start + pad + growing.until(at) - at for pad, at in zip(pads, state.length.tolist()))


def plan_prompt(
    sidecar: Sidecar | None,
    ids: Tensor,
    mask: Tensor | None,
    state: State,
    fresh: bool,
    total_length: float | None,
    method: str,
    protected: int,
) -> None:
    """Decide the plan (or one a row) for this call; notes it, the method, the total and r in the state."""
    new = torch.full_like(state.length, ids.shape[1]) if mask is None else mask.sum(1).cpu()
    reached = (state.length + new).tolist()
    if state.total is not None:  # a promised prompt goes on: its first piece decided
        if total_length is not None and total_length != state.total:
            raise ValueError(f"total_length was {state.total} at the first piece and is {total_length} now")
        if max(reached) > state.total:
            raise ValueError(f"this piece passes total_length {state.total}; start a new call without total_length")
        if state.reservoirs and mask is not None:
            raise ValueError("pieces of a decimated prompt must be equally long in all rows; prefill rows one by one")
        return
    if total_length is not None:
        if total_length < max(reached):
            raise ValueError(f"total_length {total_length} is less than the {max(reached)} tokens given")
        reached = [total_length]
    reached = reached if len(set(reached)) > 1 else reached[:1]
    plans = tuple(plan_at(sidecar, length, method, fresh) for length in reached)
    if mask is not None and any(plan.decimate for plan in plans):
        raise ValueError(
            "rows of unequal length cannot share one total_length where it decimates; leave total_length out, "
            "prefill them one by one, or use method='filter'"
        )
    state.plan = plans[0] if len(plans) == 1 else plans
    state.total, state.protected, state.method = total_length, protected, method


def _last(stream: Stream, count: int) -> Stream:
    """The last tokens, copied: a view would keep the whole chunk alive."""
    mask = None if stream.mask is None else stream.mask[:, -count:]
    return Stream(stream.residual[:, -count:].clone(), stream.positions[:, -count:].clone(), mask)


def is_open(state: State) -> bool:
    """Whether a promised, finite prompt has not been read to its end."""
    return state.total is not None and not math.isinf(state.total)
