"""The Triton backend: shapes, grids and launches. Imported only when it is used."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .triton_conv import conv_silu
from .triton_scan import carry, chunk_scan
from .triton_scores import scores

SCAN_CONFIG = {"BLOCK_D": 32, "num_warps": 1}
CONV_CONFIG = {"BLOCK_T": 16, "BLOCK_D": 64, "num_warps": 4}
SCORES_CONFIG = {"BLOCK_T": 16, "BLOCK_D": 128, "num_warps": 4}
_FILL = 2112  # programs that keep the 132 multiprocessors of an H100 or H200 busy, sixteen each
_LEAST_CHUNK = 128  # steps; below, the two extra passes cost more than they win


def plan_chunks(batch: int, channels: int, steps: int) -> tuple[int, int]:
    """(number of chunks, steps a chunk): one if the batch fills the GPU, else enough to fill it."""
    columns = batch * triton.cdiv(channels, SCAN_CONFIG["BLOCK_D"])
    wanted = max(1, min(_FILL // max(columns, 1), steps // _LEAST_CHUNK))
    size = triton.cdiv(steps, wanted) if steps else 1
    return max(1, triton.cdiv(steps, size)), size


def _per_row(threshold: Tensor | None, scale: Tensor | None) -> tuple[Tensor | None, Tensor | None, int]:
    """(D,) or (B, D) options made alike: both contiguous, and the stride between rows (0 if the batch shares one)."""
    given = [t for t in (threshold, scale) if t is not None]
    rows = max((t.shape[0] for t in given if t.dim() == 2), default=0)
    wide = [None if t is None else (t.expand(rows, -1) if rows else t).contiguous() for t in (threshold, scale)]
    return wide[0], wide[1], given[0].shape[-1] if rows else 0


def _dense_rows(t: Tensor) -> Tensor:
    """The tensor itself where its last dimension is side by side (halves of a projection are), else a copy."""
    return t if t.stride(-1) == 1 else t.contiguous()


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
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.selective_scan. `chunks` forces a number of chunks (tests, benchmarks)."""
    batch, L, channels = x.shape
    N = A.shape[1]
    steps = L if index is None else index.shape[1]
    y = torch.empty(batch, steps, channels, dtype=x.dtype, device=x.device)
    last = torch.empty(batch, channels, N, dtype=torch.float32, device=x.device)
    if not (batch and channels and steps):
        return y, last.zero_() if initial_state is None else last.copy_(initial_state)
    count, size = plan_chunks(batch, channels, steps)
    if chunks is not None:
        size = triton.cdiv(steps, chunks)
        count = triton.cdiv(steps, size)
    A = A.contiguous()
    x, delta, B, C = (_dense_rows(t) for t in (x, delta, B, C))
    z = None if z is None else _dense_rows(z)
    threshold, scale, sg_b = _per_row(threshold, scale)
    initial = None if initial_state is None else initial_state.contiguous()
    index = None if index is None else index.contiguous()
    mask = None if mask is None else mask.contiguous()
    BLOCK_N = triton.next_power_of_2(N)

    def scan(state_only: bool, start: Tensor | None, end: Tensor, delta_sum: Tensor | None) -> None:
        grid = (triton.cdiv(channels, SCAN_CONFIG["BLOCK_D"]), count, batch)
        chunk_scan[grid](
            x, delta, A, B, C, D, z, delta_bias, threshold, scale, index, mask, start, y, end, delta_sum,
            *x.stride()[:2], *delta.stride()[:2], *B.stride()[:2], *C.stride()[:2],
            *(z.stride()[:2] if z is not None else (0, 0)), sg_b, L, steps, channels, count, size,
            HAS_D=D is not None, HAS_Z=z is not None, HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus,
            HAS_THRESHOLD=threshold is not None, HAS_SCALE=scale is not None, HAS_INDEX=index is not None,
            HAS_MASK=mask is not None, HAS_INITIAL=start is not None, STATE_ONLY=state_only, N=N, BLOCK_N=BLOCK_N,
            **SCAN_CONFIG,
        )  # fmt: skip

    if count > 1:
        states = torch.empty(batch, count, channels, N, dtype=torch.float32, device=x.device)
        delta_sum = torch.empty(batch, count, channels, dtype=torch.float32, device=x.device)
        scan(True, None, states, delta_sum)
        carry[(triton.cdiv(channels, SCAN_CONFIG["BLOCK_D"]), batch)](
            A, initial, states, delta_sum, channels, count,
            HAS_INITIAL=initial is not None, N=N, BLOCK_N=BLOCK_N, **SCAN_CONFIG,
        )  # fmt: skip
        initial = states
    scan(False, initial, last, None)
    return y, last


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
    """See longscan.kernels.selective_step: a scan of one token."""
    wide = (x[:, None], delta[:, None], A, B[:, None], C[:, None], D, None if z is None else z[:, None])
    y, last = selective_scan(*wide, delta_bias, delta_softplus, threshold, scale, None, None, state)
    state.copy_(last)
    return y[:, 0]


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.causal_conv1d."""
    (batch, L, channels), W = x.shape, weight.shape[1]
    y = torch.empty(batch, L, channels, dtype=x.dtype, device=x.device)
    mask = None if mask is None else mask.contiguous()
    if batch and channels and L:
        blocks = triton.cdiv(L, CONV_CONFIG["BLOCK_T"]), triton.cdiv(channels, CONV_CONFIG["BLOCK_D"])
        conv_silu[(*blocks, batch)](
            x, weight.contiguous(), bias, None if initial_state is None else initial_state.contiguous(), mask, y,
            *x.stride(), L, channels,
            HAS_BIAS=bias is not None, HAS_BEFORE=initial_state is not None, HAS_MASK=mask is not None, W=W,
            **CONV_CONFIG,
        )  # fmt: skip
    if initial_state is None:
        initial_state = x.new_zeros(batch, channels, W - 1)
    tail = x[:, max(0, L - (W - 1)) :]
    if mask is not None:
        tail = torch.where(mask[:, max(0, L - (W - 1)) :, None], tail, 0.0)
    joined = torch.cat([initial_state.to(x.dtype), tail.transpose(1, 2)], 2)
    return y, joined[:, :, joined.shape[2] - (W - 1) :].contiguous()


def token_scores(
    delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    """See longscan.kernels.token_scores."""
    batch, L, channels = delta.shape
    out = torch.empty(batch, L, dtype=torch.float32, device=delta.device)
    if batch and L:
        scores[(triton.cdiv(L, SCORES_CONFIG["BLOCK_T"]), batch)](
            delta, delta_bias, None if mask is None else mask.contiguous(), weight, out, *delta.stride(), L, channels,
            HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, HAS_MASK=mask is not None,
            HAS_WEIGHT=weight is not None, **SCORES_CONFIG,
        )  # fmt: skip
    return out
