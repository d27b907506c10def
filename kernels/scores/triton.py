"""The launch of the token scores' Triton kernel. Imported only when it is used."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..shared.triton_launch import FUSED, WARP, dense, dense_rows, together
from .triton_kernel import scores

SCORES_CONFIG = {"UNROLL": 4, "num_warps": 1}


def token_scores(
    delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    """See longscan.kernels.token_scores."""
    batch, L, channels = delta.shape
    out = torch.empty(batch, L, dtype=torch.float32, device=delta.device)
    if batch and L:
        delta, CH = dense_rows(delta), together(channels)
        delta_bias, mask, weight = dense(delta_bias), dense(mask), dense(weight)
        scores[(triton.cdiv(L, SCORES_CONFIG["UNROLL"]), batch)](
            delta, delta_bias, mask, weight, out, *delta.stride()[:2], L, channels,
            HAS_BIAS=delta_bias is not None, SOFTPLUS=delta_softplus, HAS_MASK=mask is not None,
            HAS_WEIGHT=weight is not None, EVEN=channels % (WARP * CH) == 0, CH=CH, LANES=WARP,
            **SCORES_CONFIG, **FUSED,
        )  # fmt: skip
    return out
