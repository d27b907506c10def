"""Launches of Mamba-2's Triton kernels: shapes, grids, and into how many pieces a sequence is cut."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from .ssd_reference import Limit
from .triton_backend import FUSED, _dense_rows, _per_row
from .triton_ssd import ssd, ssd_carry, ssd_token

CHUNK = 64  # tokens a matrix product
SSD_CONFIG = {"num_warps": 4, "num_stages": 1}
CARRY_CONFIG = {"BLOCK": 1024, "num_warps": 4}
TOKEN_CONFIG = {"num_warps": 4}
FULL = 264  # programs that keep 132 multiprocessors (H100, H200) busy: two each
LEAST_PIECE = 1024  # tokens; a second pass over shorter pieces costs more than it wins


def tile(P: int, N: int) -> dict[str, int]:
    """Channels and states of a program, padded to what matrix products take: at most 8192 values, in registers."""
    BLOCK_N = max(16, triton.next_power_of_2(N))
    BLOCK_P = max(16, min(triton.next_power_of_2(P), 64, 8192 // BLOCK_N))
    return {"P": P, "N": N, "BLOCK_P": BLOCK_P, "BLOCK_N": BLOCK_N}


def precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied: three tensor-core products keep their digits (AMD multiplies them whole)."""
    return "tf32x3" if dtype == torch.float32 and not torch.version.hip else "ieee"


def plan_pieces(programs: int, steps: int) -> int:
    """Pieces of the sequence: as many as fill the GPU, none shorter than LEAST_PIECE."""
    return max(1, min(-(-FULL // programs), steps // LEAST_PIECE))


def ssd_scan(
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
    delta_limit: Limit,
    pieces: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.ssd_scan. `pieces` forces the layout (tests)."""
    batch, L, heads, P = x.shape
    groups, N = B.shape[2:]
    steps = L if index is None else index.shape[1]
    y = torch.empty(batch, steps, heads, P, dtype=x.dtype, device=x.device)
    if not (batch and heads and steps and P):
        last = torch.zeros(batch, heads, P, N, dtype=torch.float32, device=x.device)
        return y, last if initial_state is None else last.copy_(initial_state)
    sizes = tile(P, N)
    columns = heads * triton.cdiv(P, sizes["BLOCK_P"])
    count = plan_pieces(batch * columns, steps) if pieces is None else pieces
    size = triton.cdiv(triton.cdiv(steps, count), CHUNK) * CHUNK
    count = triton.cdiv(steps, size)

    x, delta, B, C = (_dense_rows(t) for t in (x, delta, B, C))
    z = None if z is None else _dense_rows(z)
    A = A.contiguous()
    D = None if D is None else D.contiguous()
    threshold, scale, sg_b = _per_row(threshold, scale)
    initial = None if initial_state is None else initial_state.float().contiguous()
    index = None if index is None else index.contiguous()
    mask = None if mask is None else mask.contiguous()

    def run(state_only: bool, start: Tensor | None, end: Tensor, delta_sum: Tensor | None) -> None:
        ssd[(columns, count - 1 if state_only else count, batch)](
            x, delta, A, B, C, D, z, delta_bias, threshold, scale, index, mask, start, y, end, delta_sum,
            *x.stride()[:3], *delta.stride()[:2], *B.stride()[:3], *C.stride()[:3],
            *(z.stride()[:3] if z is not None else (0, 0, 0)), sg_b, P if D is not None and D.dim() == 2 else 1,
            L, steps, heads, heads // groups, count, size, *delta_limit,
            HAS_D=D is not None, D_WIDE=D is not None and D.dim() == 2, HAS_Z=z is not None,
            HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, LIMITED=delta_limit != (0.0, math.inf),
            HAS_THRESHOLD=threshold is not None, HAS_SCALE=scale is not None, HAS_INDEX=index is not None,
            HAS_MASK=mask is not None, HAS_INITIAL=start is not None, STATE_ONLY=state_only,
            Q=CHUNK, PRECISION=precision(x.dtype), **sizes, **SSD_CONFIG, **FUSED,
        )  # fmt: skip

    if count > 1:
        entry = torch.empty(batch, count, heads, P, N, dtype=torch.float32, device=x.device)
        delta_sum = torch.empty(batch, count, heads, dtype=torch.float32, device=x.device)
        run(True, None, entry, delta_sum)
        ssd_carry[(triton.cdiv(P * N, CARRY_CONFIG["BLOCK"]), heads, batch)](
            A, initial, entry, delta_sum, heads, count, P * N, HAS_INITIAL=initial is not None, **CARRY_CONFIG, **FUSED
        )
        initial = entry
    last = torch.empty(batch, heads, P, N, dtype=torch.float32, device=x.device)
    run(False, initial, last, None)
    return y, last


def ssd_step(
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
    delta_limit: Limit,
) -> Tensor:
    """See longscan.kernels.ssd_step."""
    batch, heads, P, N = state.shape
    y = torch.empty(batch, heads, P, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    threshold, scale, sg_b = _per_row(threshold, scale)
    x, delta, B, C = (_dense_rows(t) for t in (x, delta, B, C))
    z = None if z is None else _dense_rows(z)
    D = None if D is None else D.contiguous()
    sizes = tile(P, N)
    ssd_token[(triton.cdiv(P, sizes["BLOCK_P"]), heads, batch)](
        state, x, delta, A.contiguous(), B, C, D, z, delta_bias, threshold, scale, y,
        *x.stride()[:2], delta.stride(0), *B.stride()[:2], *C.stride()[:2],
        *(z.stride()[:2] if z is not None else (0, 0)), sg_b, P if D is not None and D.dim() == 2 else 1,
        heads, heads // B.shape[1], *delta_limit,
        HAS_D=D is not None, D_WIDE=D is not None and D.dim() == 2, HAS_Z=z is not None,
        HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, LIMITED=delta_limit != (0.0, math.inf),
        HAS_THRESHOLD=threshold is not None, HAS_SCALE=scale is not None, **sizes, **TOKEN_CONFIG, **FUSED,
    )  # fmt: skip
    return y
