"""Launches of the scan's Triton kernels: shapes, chunks and grids. Imported only when it is used."""

from __future__ import annotations

from dataclasses import asdict

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ..shared.arguments import Scan
from ..shared.triton_launch import FUSED, WARP, dense, dense_rows, per_row
from .triton_kernel import carry, scan
from .triton_plan import PROCESSORS, REGISTERS, ScanConfig, plan_scan
from .triton_step import step

SCAN_OPTIONS = {"num_warps": 1} | ({} if torch.version.hip else {"maxnreg": REGISTERS})
CARRY_CONFIG = {"BLOCK_D": 32, "num_warps": 1}
STEP_CONFIG = {"BLOCK_D": 32, "num_warps": 1}


def _processors(device: torch.device) -> int:
    """Multiprocessors of the GPU; in the interpreter, an H100's."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else PROCESSORS


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


def selective_scan(given: Scan, chunks: int | None = None, config: ScanConfig | None = None) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.selective_scan. `chunks` and `config` force the layout (tests, benchmarks)."""
    x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, index, mask, initial_state, _ = given
    batch, L, channels = x.shape
    states = A.shape[1]
    steps = L if index is None else index.shape[1]
    y = torch.empty(batch, steps, channels, dtype=x.dtype, device=x.device)
    if not (batch and channels and steps):
        last = torch.zeros(batch, channels, states, dtype=torch.float32, device=x.device)
        return y, last if initial_state is None else last.copy_(initial_state)
    N = triton.next_power_of_2(states)
    planned, count = plan_scan(batch, channels, steps, N, WARP, _processors(x.device))
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
            EVEN=channels % config.channels(WARP) == 0, N=N, LANES=WARP, **asdict(config), **SCAN_OPTIONS, **FUSED,
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


def selective_step(state: Tensor, given: Scan) -> Tensor:
    """See longscan.kernels.selective_step."""
    x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, *_ = given
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
