"""What the public functions refuse before a backend sees it: one line that names the argument and what to do."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

Limit = tuple[float, float]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Scan(NamedTuple):
    """What a scan or its step takes but for a step's state, as `selective_scan` and `ssd_scan` say."""

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    threshold: Tensor | None
    scale: Tensor | None
    index: Tensor | None = None  # type: ignore[assignment]  # in the place of a tuple's method
    mask: Tensor | None = None
    initial_state: Tensor | None = None
    delta_limit: Limit = (-math.inf, math.inf)  # Mamba-1 has none

    def floating(self) -> dict[str, Tensor | None]:
        """Those that must be of a floating-point dtype, by name."""
        return {
            "x": self.x, "delta": self.delta, "A": self.A, "B": self.B, "C": self.C, "D": self.D, "z": self.z,
            "delta_bias": self.delta_bias, "threshold": self.threshold, "scale": self.scale,
            "initial_state": self.initial_state,
        }  # fmt: skip


def shape(name: str, t: Tensor | None, *shapes: tuple[int, ...]) -> None:
    """Refuse a tensor of none of these shapes."""
    if t is not None and tuple(t.shape) not in shapes:
        wanted = " or ".join(str(s) for s in shapes)
        raise ValueError(f"{name} has shape {tuple(t.shape)}, expected {wanted}")


def floats(**tensors: Tensor | None) -> list[Tensor]:
    """Those given: real floating-point tensors, all on the first one's device."""
    given: list[Tensor] = []
    first = next(iter(tensors))
    for name, t in tensors.items():
        if t is None:
            continue
        if not isinstance(t, Tensor) or t.dtype not in FLOATS:
            found = t.dtype if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"{name} must be a float16, bfloat16, float32 or float64 tensor, found {found}")
        given.append(t)
        _same_device(name, t, first, given[0])
    return given


def _same_device(name: str, t: Tensor, first: str, there: Tensor) -> None:
    if t.device != there.device:
        raise ValueError(f"{name} is on {t.device} and {first} on {there.device}; move one of them")


def tokens_seen(mask: Tensor | None, first: str, like: Tensor) -> None:
    """Refuse a mask that is not (B, L) bool for `like` (B, L, ...), the tensor named `first`."""
    if mask is None:
        return
    shape("mask", mask, tuple(like.shape[:2]))
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, found {mask.dtype}; use mask.bool()")
    _same_device("mask", mask, first, like)


def positions(index: Tensor | None, x: Tensor) -> None:
    """Refuse an index that is not (B, K) int64, ascending places in x (B, L, ...), -1 anywhere.

    On a GPU the values are asserted there, without waiting for them: what is wrong ends the program a little later.
    """
    if index is None:
        return
    batch, L = x.shape[:2]
    if index.dim() != 2 or index.shape[0] != batch or index.dtype != torch.int64:
        raise ValueError(f"index must be ({batch}, K) int64, found {tuple(index.shape)} {index.dtype}")
    _same_device("index", index, "x", x)
    if not index.numel():
        return
    inside = (index >= -1) & (index < L)
    later = (index[:, 1:] > index.cummax(1).values[:, :-1]) | (index[:, 1:] < 0)
    right = inside.all() & later.all()
    wanted = f"index must ascend within 0 ... {L - 1}, with -1 for absent tokens"
    if index.device.type != "cpu":
        torch._assert_async(right, wanted)
    elif not right:
        if bool(inside.all()):
            raise ValueError(f"{wanted}; row {int((~later).any(1).nonzero()[0])} does not ascend")
        raise ValueError(f"{wanted}, found {int(index[~inside][0])}")


def state_of(x: Tensor, state: Tensor, dimensions: str) -> None:
    """Refuse a state that a step cannot update in place."""
    names = dimensions.split(", ")
    if state.dim() != len(names) or not state.is_contiguous():
        raise ValueError(
            f"state must be ({dimensions}) and contiguous (it is updated in place), "
            f"found {tuple(state.shape)} with strides {state.stride()}"
        )
    wanted = torch.promote_types(x.dtype, torch.float32)
    if state.dtype != wanted:
        raise ValueError(f"state must be {wanted} beside x in {x.dtype}, found {state.dtype}")
    if torch.is_grad_enabled() and state.requires_grad:
        raise ValueError("state requires a gradient and is updated in place; give state.detach()")


def limits(limit: Limit) -> None:
    """Refuse limits of delta that are not low <= high."""
    low, high = limit
    if not low <= high:
        raise ValueError(f"delta_limit must be (low, high) with low <= high, found {limit}")
