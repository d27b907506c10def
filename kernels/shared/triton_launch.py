"""How kernels are launched: what stands side by side in memory, and the options of every launch."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

LANES = 32  # threads of a warp; on AMD 64
WARP = 64 if torch.version.hip else LANES
FUSED = {"enable_fp_fusion": True}  # multiply-adds in one instruction; Triton's default differs between versions


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


def together(channels: int) -> int:
    """Neighbouring channels a thread reads at once: the most that divide them, at most four."""
    return next(CH for CH in (4, 2, 1) if channels % CH == 0)
