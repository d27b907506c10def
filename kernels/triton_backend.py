"""The Triton backend: shapes, grids and launches. Imported only when it is used."""

from __future__ import annotations

from dataclasses import asdict
from typing import TypeVar

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from .triton_conv import conv_silu
from .triton_plan import LANES, ScanConfig, plan_scan
from .triton_scan import carry, scan
from .triton_scores import scores
from .triton_step import step

CARRY_CONFIG = {"BLOCK_D": 32, "num_warps": 1}
STEP_CONFIG = {"BLOCK_D": 32, "num_warps": 1}
CONV_CONFIG = {"BLOCK_T": 64, "UNROLL": 4, "num_warps": 1}
SCORES_CONFIG = {"UNROLL": 4, "num_warps": 1}
FUSED = {"enable_fp_fusion": True}  # multiply-adds in one instruction; Triton's default differs between versions
WARP = 64 if torch.version.hip else LANES


def per_row(threshold: Tensor | None, scale: Tensor | None) -> tuple[Tensor | None, Tensor | None, int]:
    """(D,) or (B, D) options made alike: both contiguous, and the stride between rows (0 if the batch shares one)."""
    given = [t for t in (threshold, scale) if t is not None]
    rows = max((t.shape[0] for t in given if t.dim() == 2), default=0)
    wide = [None if t is None else (t.expand(rows, -1) if rows else t).contiguous() for t in (threshold, scale)]
    return wide[0], wide[1], given[0].shape[-1] if rows else 0


T = TypeVar("T", Tensor, Tensor | None)


def dense(t: T) -> T:
    """What a kernel reads without strides."""
    return None if t is None else t.contiguous()


def dense_rows(t: T) -> T:
    """The tensor itself where its last dimension is side by side (halves of a projection are), else a copy."""
    return t if t is None or t.stride(-1) == 1 else t.contiguous()


def _together(channels: int) -> int:
    """Neighbouring channels a thread reads at once: the most that divide them, at most four."""
    return next(CH for CH in (4, 2, 1) if channels % CH == 0)


def _padded(t: Tensor, N: int) -> Tensor:
    """Zeros after the last dimension up to N, contiguous: states that stay zero."""
    return t.contiguous() if t.shape[-1] == N else F.pad(t, (0, N - t.shape[-1]))


def _side_by_side(B: Tensor, C: Tensor, N: int) -> Tensor:
    """B, C (B, L, states) -> (B, L, 2N) float32 contiguous. Slices of one projection are converted in one go."""
    states = B.shape[-1]
    together = (
        states == N
        and B.dtype == C.dtype
        and B.stride() == C.stride()
        and B.stride(-1) == 1
        and B.untyped_storage().data_ptr() == C.untyped_storage().data_ptr()
        and C.storage_offset() == B.storage_offset() + N
    )
    if together:
        return B.as_strided((*B.shape[:2], 2 * N), B.stride()).float().contiguous()
    return torch.cat([_padded(B.float(), N), _padded(C.float(), N)], -1)


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    threshold: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    mask: Tensor | None,
    initial_state: Tensor | None,
    chunks: int | None = None,
    config: ScanConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.selective_scan. `chunks` and `config` force the layout (tests, benchmarks)."""
    batch, L, channels = x.shape
    states = A.shape[1]
    steps = L if index is None else index.shape[1]
    y = torch.empty(batch, steps, channels, dtype=x.dtype, device=x.device)
    if not (batch and channels and steps):
        last = torch.zeros(batch, channels, states, dtype=torch.float32, device=x.device)
        return y, last if initial_state is None else last.copy_(initial_state)
    N = triton.next_power_of_2(states)
    planned, count = plan_scan(batch, channels, steps, N, WARP)
    config = planned if config is None else config
    count = count if chunks is None else chunks
    size = triton.cdiv(steps, count)
    count = triton.cdiv(steps, size)

    A = _padded(A.float(), N)
    BC = _side_by_side(B, C, N)
    x, delta, z = dense_rows(x), dense_rows(delta), dense_rows(z)
    D, delta_bias, index, mask = dense(D), dense(delta_bias), dense(index), dense(mask)
    threshold, scale, sg_b = per_row(threshold, scale)
    initial = None if initial_state is None else _padded(initial_state.float(), N)
    columns = triton.cdiv(channels, config.channels(WARP))

    def run(state_only: bool, start: Tensor | None, end: Tensor, delta_sum: Tensor | None) -> None:
        scan[(columns, count - 1 if state_only else count, batch)](
            x, delta, A, BC, D, z, delta_bias, threshold, scale, index, mask, start, y, end, delta_sum,
            *x.stride()[:2], *delta.stride()[:2], *(z.stride()[:2] if z is not None else (0, 0)), sg_b,
            L, steps, channels, count, size,
            HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus,
            HAS_THRESHOLD=threshold is not None, HAS_SCALE=scale is not None, HAS_INDEX=index is not None,
            HAS_MASK=mask is not None, HAS_INITIAL=start is not None, STATE_ONLY=state_only,
            EVEN=channels % config.channels(WARP) == 0, N=N, LANES=WARP, num_warps=1, **asdict(config), **FUSED,
        )  # fmt: skip

    if count > 1:
        entry = torch.empty(batch, count, channels, N, dtype=torch.float32, device=x.device)
        delta_sum = torch.empty(batch, count, channels, dtype=torch.float32, device=x.device)
        run(True, None, entry, delta_sum)
        carry[(triton.cdiv(channels, CARRY_CONFIG["BLOCK_D"]), batch)](
            A, initial, entry, delta_sum, channels, count, HAS_INITIAL=initial is not None, N=N, **CARRY_CONFIG, **FUSED
        )
        initial = entry
    last = torch.empty(batch, channels, N, dtype=torch.float32, device=x.device)
    run(False, initial, last, None)
    return y, last if states == N else last[..., :states].contiguous()


def selective_step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    threshold: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """See longscan.kernels.selective_step."""
    batch, channels, N = state.shape
    y = torch.empty(batch, channels, dtype=x.dtype, device=x.device)
    threshold, scale, sg_b = per_row(threshold, scale)
    x, delta, B, C = dense_rows(x), dense_rows(delta), dense_rows(B), dense_rows(C)
    A, D, z, delta_bias = dense(A), dense(D), dense_rows(z), dense(delta_bias)
    if batch and channels:
        step[(triton.cdiv(channels, STEP_CONFIG["BLOCK_D"]), batch)](
            state, x, delta, A, B, C, D, z, delta_bias, threshold, scale, y,
            x.stride(0), delta.stride(0), B.stride(0), C.stride(0), 0 if z is None else z.stride(0), sg_b, channels,
            HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus,
            HAS_THRESHOLD=threshold is not None, HAS_SCALE=scale is not None,
            N=N, BLOCK_N=triton.next_power_of_2(N), **STEP_CONFIG, **FUSED,
        )  # fmt: skip
    return y


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.causal_conv1d."""
    (batch, L, channels), W = x.shape, weight.shape[1]
    y = torch.empty(batch, L, channels, dtype=x.dtype, device=x.device)
    before = None if initial_state is None else initial_state.to(x.dtype).contiguous()
    if not (batch and channels and L):
        return y, x.new_zeros(batch, channels, W - 1) if before is None else before.clone()
    last = torch.empty(batch, channels, W - 1, dtype=x.dtype, device=x.device)
    x, weight, bias, mask, CH = dense_rows(x), dense(weight), dense(bias), dense(mask), _together(channels)
    conv_silu[(triton.cdiv(L, CONV_CONFIG["BLOCK_T"]), triton.cdiv(channels, WARP * CH), batch)](
        x, weight, bias, before, mask, y, last,
        *x.stride()[:2], L, channels,
        HAS_BIAS=bias is not None, HAS_BEFORE=before is not None, HAS_MASK=mask is not None,
        EVEN=channels % (WARP * CH) == 0, W=W, CH=CH, LANES=WARP, **CONV_CONFIG, **FUSED,
    )  # fmt: skip
    return y, last


def token_scores(
    delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    """See longscan.kernels.token_scores."""
    batch, L, channels = delta.shape
    out = torch.empty(batch, L, dtype=torch.float32, device=delta.device)
    if batch and L:
        delta, CH = dense_rows(delta), _together(channels)
        delta_bias, mask, weight = dense(delta_bias), dense(mask), dense(weight)
        scores[(triton.cdiv(L, SCORES_CONFIG["UNROLL"]), batch)](
            delta, delta_bias, mask, weight, out, *delta.stride()[:2], L, channels,
            HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, HAS_MASK=mask is not None,
            HAS_WEIGHT=weight is not None, EVEN=channels % (WARP * CH) == 0, CH=CH, LANES=WARP,
            **SCORES_CONFIG, **FUSED,
        )  # fmt: skip
    return out
