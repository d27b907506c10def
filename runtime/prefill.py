"""Prefill: which plan a prompt gets, then one loop over its chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import ModelConfig
from .forward import Stream, embed, logits, run_layers
from .observer import Observer
from .plan import LayerPlan, Plan
from .sidecar import Sidecar
from .state import State
from .weights import Weights


@dataclass(frozen=True)
class Output:
    """What prefill returns.

    logits: (B, K, V) float32, K = logits_to_keep (fewer if the prompt is shorter; 0 = all tokens still present)
    positions: (B, K) int64, place of each row of logits in its own prompt; -1 = none
    state: State after the prompt
    plan: Plan, or a tuple of plans where rows have unequal lengths
    """

    logits: Tensor
    positions: Tensor
    state: State
    plan: Plan | tuple[Plan, ...]


def layer_plans(plans: tuple[Plan, ...], sidecar: Sidecar | None, weights: Weights, protected: int) -> list[LayerPlan]:
    """Resolve plans (one, or one a row) into what each layer needs, on the model's device."""
    n_layer, device = len(weights.layers), weights.embedding.device
    if sidecar is None or all(plan.method == "none" for plan in plans):
        return [LayerPlan()] * n_layer
    rows = [_thresholds(plan, sidecar, n_layer, protected) for plan in plans]
    scaled = any(plan.method == "scale" for plan in plans)
    resolved = []
    for i in range(n_layer):
        g = rows[0][i] if len(rows) == 1 else torch.stack([row[i] for row in rows])
        scales = [_scales(plan, sidecar, i) for plan in plans] if scaled else []
        keep = plans[0].decimate.get(i)
        resolved.append(
            LayerPlan(
                threshold=g.to(device) if bool((g > 0).any()) else None,
                scale=torch.stack(scales).squeeze(0).to(device) if scaled else None,
                keep=keep,
                score_weight=None if keep is None else sidecar.score_weights(i, plans[0].length).to(device),
            )
        )
    return resolved


def _thresholds(plan: Plan, sidecar: Sidecar, n_layer: int, protected: int) -> list[Tensor]:
    channels = int(sidecar.metadata["channels"])
    if plan.method not in ("filter", "both"):
        return [torch.zeros(channels)] * n_layer
    band = sidecar.band(plan.length)
    seen = plan.scan_lengths(n_layer, protected)
    if sidecar.keyed_by_prompt(band, plan.method):
        seen = [plan.length] * n_layer  # type: ignore[list-item]
    return [sidecar.thresholds_in(band, i, seen[i], plan.method) for i in range(n_layer)]


def _scales(plan: Plan, sidecar: Sidecar, layer: int) -> Tensor:
    if plan.method != "scale":
        return torch.ones(int(sidecar.metadata["channels"]))
    return sidecar.scales(layer, plan.length)


def check_ids(ids: Tensor, mask: Tensor | None, vocabulary: int) -> tuple[Tensor, Tensor | None]:
    """Validate ids (B, L) and the left-padding mask; returns the mask as bool, or None if nothing is padded."""
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ValueError(f"ids must be (B, L) int64, found {tuple(ids.shape)} {ids.dtype}; use torch.tensor([[...]])")
    if ids.numel() == 0:
        raise ValueError("the prompt is empty; give at least one token")
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise ValueError(f"token ids must lie in 0 ... {vocabulary - 1}; is this the model's own tokenizer?")
    if mask is None:
        return ids, None
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, expected {tuple(ids.shape)}")
    mask = mask.to(ids.device).bool()
    if (mask[:, 1:] < mask[:, :-1]).any() or not mask[:, -1].all():
        raise ValueError("attention_mask must be left padding (0 ... 0 1 ... 1 in every row); pad on the left")
    return ids, None if bool(mask.all()) else mask


def prefill(
    weights: Weights,
    config: ModelConfig,
    sidecar: Sidecar | None,
    ids: Tensor,
    state: State,
    *,
    fresh: bool,
    total_length: float | None,
    chunk: int | None,
    method: str,
    attention_mask: Tensor | None,
    logits_to_keep: int,
    observer: Observer | None,
    backend: str,
) -> Output:
    """Read `ids` (B, L) into `state`, in place. See LM.prefill."""
    ids, mask = check_ids(ids, attention_mask, weights.embedding.shape[0])
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; give at least 1 token, or None for one chunk")
    if logits_to_keep < 0:
        raise ValueError(f"logits_to_keep is {logits_to_keep}; give 0 (all) or more")
    L = ids.shape[1]
    new = torch.full_like(state.length, L) if mask is None else mask.sum(1)
    plans = _plans(sidecar, state, new, fresh, total_length, method, max(1, logits_to_keep))
    decimates = any(plan.decimate for plan in plans)
    if decimates and len(plans) > 1:
        raise ValueError("rows of unequal length cannot be decimated in one batch; prefill them one by one")
    if decimates and (min(chunk or L, L) < L or (state.total is not None and state.total > L)):
        raise ValueError("decimation needs the whole prompt in one chunk; leave chunk out, or use method='filter'")

    protected = state.protected
    resolved = layer_plans(plans, sidecar, weights, protected)
    size, pieces = chunk or L, []
    for start in range(0, L, size):
        part = slice(start, start + size)
        piece_mask = None if mask is None else mask[:, part]
        stream = embed(weights, config, ids[:, part], state.length, piece_mask)
        stream = run_layers(
            weights, config, stream, state, resolved, protected=protected, observer=observer, backend=backend
        )
        state.length += ids[:, part].shape[1] if piece_mask is None else piece_mask.sum(1)
        pieces.append(stream)
        if logits_to_keep:  # keep no more residuals than the logits need
            pieces = [_last(_join(pieces), logits_to_keep)]
    stream = _join(pieces)
    if state.total is not None and bool((state.length >= state.total).all()):
        state.total = None  # the promised prompt is complete
    return Output(logits(weights, config, stream.residual), stream.positions, state, state.plan)


def _plans(
    sidecar: Sidecar | None,
    state: State,
    new: Tensor,
    fresh: bool,
    total_length: float | None,
    method: str,
    protected: int,
) -> tuple[Plan, ...]:
    """The plan (or one a row) for this call; notes plan, total and r in the state."""
    if state.total is not None:  # a promised prompt goes on: its first piece decided
        if total_length is not None and total_length != state.total:
            raise ValueError(f"total_length was {state.total} at the first piece and is {total_length} now")
        if int((state.length + new).max()) > state.total:
            raise ValueError(f"this piece passes total_length {state.total}; start a new call without total_length")
        return state.plan if isinstance(state.plan, tuple) else (state.plan,)
    reached = (state.length + new).tolist()
    if total_length is not None:
        if total_length < max(reached):
            raise ValueError(f"total_length {total_length} is less than the {max(reached)} tokens given")
        reached = [total_length]
        state.total = total_length
    state.protected = protected
    reached = reached if len(set(reached)) > 1 else reached[:1]
    plans = tuple(_plan(sidecar, length, method, fresh) for length in reached)
    state.plan = plans[0] if len(plans) == 1 else plans
    return plans


def _plan(sidecar: Sidecar | None, length: float, method: str, fresh: bool) -> Plan:
    if sidecar is None:
        if method not in ("auto", "none"):
            raise ValueError(f"method {method!r} needs a sidecar; load(model, sidecar=...)")
        return Plan("none", length)
    plan = sidecar.plan(length, method)
    if fresh or not plan.decimate:
        return plan
    # Later calls never decimate: what was read before is already in the state.
    return sidecar.plan(length, "filter") if plan.method == "both" else Plan("none", length)


def _join(pieces: list[Stream]) -> Stream:
    if len(pieces) == 1:
        return pieces[0]
    mask = None if pieces[0].mask is None else torch.cat([p.mask for p in pieces if p.mask is not None], 1)
    return Stream(torch.cat([p.residual for p in pieces], 1), torch.cat([p.positions for p in pieces], 1), mask)


def _last(stream: Stream, count: int) -> Stream:
    mask = None if stream.mask is None else stream.mask[:, -count:]
    return Stream(stream.residual[:, -count:], stream.positions[:, -count:], mask)


def is_open(state: State) -> bool:
    """Whether a promised, finite prompt has not been read to its end."""
    return state.total is not None and not math.isinf(state.total)
