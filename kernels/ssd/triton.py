"""Launches of Mamba-2's Triton kernels: shapes, tiles and grids."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shared.arguments import Limit, Scan
from ..shared.triton_launch import FUSED, dense, dense_rows, per_row
from .triton_kernel import ssd_carry, ssd_outputs, ssd_pairs, ssd_states, ssd_token

_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
CHUNK = 256  # tokens between stored states
OUTPUTS_CONFIG = {"num_warps": 4, "num_stages": 1}
PAIRS_CONFIG = {"num_warps": 4, "num_stages": 1}
CARRY_CONFIG = {"BLOCK": 512, "AHEAD": 4, "num_warps": 4}
TOKEN_CONFIG = {"num_warps": 4}


def tile(P: int, N: int) -> dict[str, int]:
    """Channels and states of a program, padded to what matrix products take: at most 8192 values, in registers."""
    BLOCK_N = max(16, triton.next_power_of_2(N))
    BLOCK_P = max(16, min(triton.next_power_of_2(P), 64, 8192 // BLOCK_N))
    return {"P": P, "N": N, "BLOCK_P": BLOCK_P, "BLOCK_N": BLOCK_N}


def products(P: int, N: int, dtype: torch.dtype, cuda: bool) -> dict[str, Any]:
    """The tile, Q tokens and K states a matrix product (as many as registers hold), and how float32 is multiplied: as
    three tensor-core products, whole on AMD."""
    sizes = tile(P, N) | {"CHUNK": CHUNK}
    if dtype == torch.float32:
        return sizes | {"Q": 16, "K": sizes["BLOCK_N"] if N <= 128 else 64, "PRECISION": "tf32x3" if cuda else "ieee"}
    return sizes | {"Q": 32, "K": sizes["BLOCK_N"], "PRECISION": "ieee"}


def states_config(N: int) -> dict[str, int]:
    """Tokens read ahead by the copy engine where shared memory has room for them."""
    return {"num_warps": 4, "num_stages": 3 if N <= 128 else 1}


def states_products(sizes: dict[str, Any]) -> dict[str, Any]:
    """The same for `ssd_states`, which keeps all states."""
    return {k: v for k, v in sizes.items() if k != "K"}


def pairs_products(sizes: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same for `ssd_pairs`, which has no channels."""
    return {k: v for k, v in sizes.items() if k not in ("P", "BLOCK_P")} | {"DTYPE": _DTYPES[dtype]}


def _limited(limit: Limit, softplus: bool) -> bool:
    """Whether the limits can change a delta: softplus is above 0 itself."""
    return limit != (0.0, math.inf) or not softplus


def ssd_scan(given: Scan) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.ssd_scan."""
    x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, index, mask, initial_state, limit = given
    batch, L, heads, P = x.shape
    groups, N = B.shape[2:]
    steps = L if index is None else index.shape[1]
    y = torch.empty(batch, steps, heads, P, dtype=x.dtype, device=x.device)
    if not (batch and heads and steps and P):
        last = torch.zeros(batch, heads, P, N, dtype=torch.float32, device=x.device)
        return y, last if initial_state is None else last.copy_(initial_state)
    sizes = products(P, N, x.dtype, not torch.version.hip)
    columns = heads * triton.cdiv(P, sizes["BLOCK_P"])
    chunks = triton.cdiv(steps, CHUNK)
    x, delta, B, C, z = dense_rows(x), dense_rows(delta), dense_rows(B), dense_rows(C), dense_rows(z)
    A, D, delta_bias, index, mask = dense(A), dense(D), dense(delta_bias), dense(index), dense(mask)
    threshold, scale, sg_b = per_row(threshold, scale)
    kept, whole, part = torch.empty(3, batch, heads, chunks * CHUNK, dtype=torch.float32, device=x.device)
    states = torch.empty(batch, chunks, heads, N, P, dtype=torch.float32, device=x.device)
    # The products round what a chunk starts at to their dtype: it is stored in it.
    starts = states if x.dtype == torch.float32 else torch.empty_like(states, dtype=x.dtype)
    pairs = torch.empty(batch, groups, chunks * CHUNK, CHUNK, dtype=torch.float32, device=x.device)
    ssd_states[(chunks * columns, batch)](
        x, delta, A, B, delta_bias, threshold, scale, index, mask, kept, whole, part, states,
        *x.stride()[:3], *delta.stride()[:2], *B.stride()[:3], sg_b, L, steps, heads, heads // groups, chunks,
        *limit, HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus,
        LIMITED=_limited(limit, delta_softplus), HAS_THRESHOLD=threshold is not None,
        HAS_SCALE=scale is not None, HAS_INDEX=index is not None, HAS_MASK=mask is not None,
        **states_products(sizes), **states_config(N), **FUSED,
    )  # fmt: skip
    initial = None if initial_state is None else initial_state.float().contiguous()
    last = torch.empty(batch, heads, P, N, dtype=torch.float32, device=x.device)
    ssd_carry[(triton.cdiv(P * N, CARRY_CONFIG["BLOCK"]), heads, batch)](
        initial, states, whole, part, starts, last, heads, chunks,
        HAS_INITIAL=initial is not None, P=P, N=N, CHUNK=CHUNK, **CARRY_CONFIG, **FUSED,
    )  # fmt: skip
    ssd_pairs[(triton.cdiv(steps, sizes["Q"]), CHUNK // sizes["Q"], batch * groups)](
        B, C, index, mask, pairs, *B.stride()[:3], *C.stride()[:3], L, steps, groups, chunks,
        HAS_INDEX=index is not None, HAS_MASK=mask is not None,
        **pairs_products(sizes, x.dtype), **PAIRS_CONFIG, **FUSED,
    )  # fmt: skip
    ssd_outputs[(triton.cdiv(steps, sizes["Q"]) * columns, batch)](
        x, C, D, z, index, mask, kept, whole, part, pairs, starts, y,
        *x.stride()[:3], *C.stride()[:3], *(z.stride()[:3] if z is not None else (0, 0, 0)),
        P if D is not None and D.dim() == 2 else 1, L, steps, heads, heads // groups, chunks,
        HAS_D=D is not None, D_WIDE=D is not None and D.dim() == 2, HAS_Z=z is not None, HAS_INDEX=index is not None,
        HAS_MASK=mask is not None, **sizes, **OUTPUTS_CONFIG, **FUSED,
    )  # fmt: skip
    return y, last


def ssd_step(state: Tensor, given: Scan) -> Tensor:
    """See longscan.kernels.ssd_step."""
    x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, *_, limit = given
    batch, heads, P, N = state.shape
    y = torch.empty(batch, heads, P, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x, delta, B, C, z = dense_rows(x), dense_rows(delta), dense_rows(B), dense_rows(C), dense_rows(z)
    A, D, delta_bias = dense(A), dense(D), dense(delta_bias)
    threshold, scale, sg_b = per_row(threshold, scale)
    sizes = tile(P, N)
    ssd_token[(triton.cdiv(P, sizes["BLOCK_P"]), heads, batch)](
        state, x, delta, A, B, C, D, z, delta_bias, threshold, scale, y,
        *x.stride()[:2], delta.stride(0), *B.stride()[:2], *C.stride()[:2],
        *(z.stride()[:2] if z is not None else (0, 0)), sg_b, P if D is not None and D.dim() == 2 else 1,
        heads, heads // B.shape[1], *limit,
        HAS_D=D is not None, D_WIDE=D is not None and D.dim() == 2, HAS_Z=z is not None,
        HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, LIMITED=_limited(limit, delta_softplus),
        HAS_THRESHOLD=threshold is not None, HAS_SCALE=scale is not None, **sizes, **TOKEN_CONFIG, **FUSED,
    )  # fmt: skip
    return y
