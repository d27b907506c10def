"""The one forward pass: residual stream in, residual stream out, states updated in place.

    B batch   L tokens entering a layer   K tokens leaving it (K < L only where it decimates)
    M d_model   D d_inner   N d_state   R dt_rank   W conv width   V vocabulary

Mamba-1, one layer (methods: delta = 0 makes a token invisible to the state):

    x, z     = in_proj(norm(residual))                  (B, L, D) each
    x        = silu(conv(x))
    delta, B, C = dt_proj(x_proj(x)[:R]), x_proj(x)[R:R+N], x_proj(x)[R+N:]
    y        = scan(x, delta, A, B, C, D, z)            h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t
    residual = residual + out_proj(y)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import causal_conv1d, selective_scan, selective_step, token_scores
from .config import ModelConfig
from .observer import Observer, ScanInputs
from .plan import LayerPlan, kept
from .state import State
from .weights import Layer, Weights


@dataclass(frozen=True)
class Stream:
    """The tokens still present: residual (B, K, M), each token's place in its prompt (B, K), mask (B, K) or None."""

    residual: Tensor
    positions: Tensor
    mask: Tensor | None


def embed(weights: Weights, config: ModelConfig, ids: Tensor, first: Tensor, mask: Tensor | None) -> Stream:
    """ids (B, L) -> Stream. `first` (B,) is the number of tokens each row has read before these."""
    residual = F.embedding(ids, weights.embedding)
    if config.residual_in_fp32 and residual.dtype != torch.float64:
        residual = residual.float()
    if mask is None:
        offsets = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    else:
        offsets = mask.long().cumsum(1) - 1
    positions = first[:, None] + offsets
    return Stream(residual, positions if mask is None else positions.where(mask, -1), mask)


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, config: ModelConfig, dtype: torch.dtype) -> Tensor:
    """RMSNorm (or LayerNorm, for the models that use it) computed in float32, returned in the weights' dtype."""
    x = x.to(weight.dtype)
    if config.rms_norm:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.norm_epsilon)
        return (x * weight).to(dtype)
    return F.layer_norm(x, weight.shape, weight, bias, config.norm_epsilon).to(dtype)


def _project(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (..., D) -> delta before bias and softplus (..., D), B (..., N), C (..., N)."""
    N, R = layer.A.shape[1], layer.dt_proj.shape[1]
    low_rank, B, C = F.linear(x, layer.x_proj).split([R, N, N], dim=-1)
    return F.linear(low_rank, layer.dt_proj), B, C


def select(score: Tensor, keep: int, protected: int) -> Tensor:
    """Positions (B, n + r) ascending: the n best-scored of the first L - r tokens, then the last r.

    Ties go to the earlier token. score: (B, L) float32.
    """
    L = score.shape[1]
    n, r = kept(L, keep, protected), min(protected, L)
    best = score[:, : L - r].sort(dim=1, descending=True, stable=True).indices[:, :n].sort(dim=1).values
    last = torch.arange(L - r, L, device=score.device).expand(score.shape[0], r)
    return torch.cat([best, last], dim=1)


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
) -> Stream:
    """Layers first ... stop - 1 over a chunk. `state` is updated in place; `plans` has one entry a layer."""
    for i in range(first, len(weights.layers) if stop is None else stop):
        stream = _layer(weights.layers[i], i, config, stream, state, plans[i], protected, observer, backend)
    return stream


def _layer(
    layer: Layer,
    i: int,
    config: ModelConfig,
    stream: Stream,
    state: State,
    plan: LayerPlan,
    protected: int,
    observer: Observer | None,
    backend: str,
) -> Stream:
    mask = stream.mask
    hidden = norm(stream.residual, layer.norm, layer.norm_bias, config, layer.in_proj.dtype)
    x, z = F.linear(hidden, layer.in_proj, layer.in_bias).chunk(2, dim=-1)
    x, conv = causal_conv1d(x, layer.conv, layer.conv_bias, state.conv[i], mask, backend=backend)
    state.conv[i] = conv
    delta, B, C = _project(layer, x)
    if observer is not None:
        plan = observer.observe(i, ScanInputs(layer, plan, x, delta, B, C, mask)) or plan

    index = None
    if plan.keep is not None and kept(x.shape[1], plan.keep, protected) + protected < x.shape[1]:
        score = token_scores(delta, layer.dt_bias, mask=mask, weight=plan.score_weight, backend=backend)
        index = select(score, plan.keep, protected)
    y, ssm = selective_scan(
        x,
        delta,
        layer.A,
        B,
        C,
        layer.D,
        z,
        delta_bias=layer.dt_bias,
        threshold=plan.threshold,
        scale=plan.scale,
        index=index,
        mask=mask,
        initial_state=state.ssm[i],
        backend=backend,
    )
    state.ssm[i] = ssm
    residual, positions = stream.residual, stream.positions
    if index is not None:  # the residual stream is shortened with the scan
        residual = residual.gather(1, index[:, :, None].expand(-1, -1, residual.shape[2]))
        positions = positions.gather(1, index)
        mask = None if mask is None else mask.gather(1, index)
    return Stream(residual + F.linear(y, layer.out_proj, layer.out_bias), positions, mask)


def logits(weights: Weights, config: ModelConfig, residual: Tensor) -> Tensor:
    """Final norm and head: (..., M) -> (..., V) float32 (float64 for a float64 model)."""
    hidden = norm(residual, weights.norm, weights.norm_bias, config, weights.head.dtype)
    out = F.linear(hidden, weights.head)
    return out if out.dtype == torch.float64 else out.float()


def step_layers(weights: Weights, config: ModelConfig, token: Tensor, state: State, backend: str = "auto") -> Tensor:
    """One token a row, (B,) -> logits (B, V); the recurrent form of the same equations. Updates `state` in place."""
    residual = F.embedding(token, weights.embedding)
    if config.residual_in_fp32 and residual.dtype != torch.float64:
        residual = residual.float()
    for i, layer in enumerate(weights.layers):
        hidden = norm(residual, layer.norm, layer.norm_bias, config, layer.in_proj.dtype)
        x, z = F.linear(hidden, layer.in_proj, layer.in_bias).chunk(2, dim=-1)
        window = torch.cat([state.conv[i], x[:, :, None]], dim=2)  # (B, D, W)
        state.conv[i] = window[:, :, 1:]
        x = (window * layer.conv).sum(-1)
        x = F.silu(x if layer.conv_bias is None else x + layer.conv_bias)
        delta, B, C = _project(layer, x)
        y = selective_step(state.ssm[i], x, delta, layer.A, B, C, layer.D, z, delta_bias=layer.dt_bias, backend=backend)
        residual = residual + F.linear(y, layer.out_proj, layer.out_bias)
    return logits(weights, config, residual)
