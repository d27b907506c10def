"""The launches of the convolution's Triton kernels. Imported only when they are used."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..shared.triton_launch import FUSED, WARP, dense, dense_rows, together
from .triton_kernel import conv_silu, conv_step

CONV_CONFIG = {"BLOCK_T": 64, "UNROLL": 4, "num_warps": 1}
STEP_CONFIG = {"BLOCK_D": 128, "num_warps": 4}


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
    x, weight, bias, mask, CH = dense_rows(x), dense(weight), dense(bias), dense(mask), together(channels)
    conv_silu[(triton.cdiv(L, CONV_CONFIG["BLOCK_T"]), triton.cdiv(channels, WARP * CH), batch)](
        x, weight, bias, before, mask, y, last,
        *x.stride()[:2], L, channels,
        HAS_BIAS=bias is not None, HAS_BEFORE=before is not None, HAS_MASK=mask is not None,
        EVEN=channels % (WARP * CH) == 0, W=W, CH=CH, LANES=WARP, **CONV_CONFIG, **FUSED,
    )  # fmt: skip
    return y, last


def causal_conv1d_step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See longscan.kernels.causal_conv1d_step."""
    (batch, channels), W = x.shape, weight.shape[1]
    y = torch.empty(batch, channels, dtype=x.dtype, device=x.device)
    if y.numel():
        x, weight, bias = dense_rows(x), dense(weight), dense(bias)
        conv_step[(triton.cdiv(channels, STEP_CONFIG["BLOCK_D"]), batch)](
            state, x, weight, bias, y, *state.stride(), x.stride(0), channels,
            HAS_BIAS=bias is not None, W=W, **STEP_CONFIG, **FUSED,
        )  # fmt: skip
    return y
