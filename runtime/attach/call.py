"""What one call of an attached model needs. It lives in the call: threads that share a model share none of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..reading.growth import Growth
from ..reading.observer import Observer
from ..reading.padding import Padding
from ..reading.state import State
from ..sidecar.plan import LayerPlan, Plan
from ..sidecar.sidecar import Sidecar


@dataclass(frozen=True)
class Settings:
    """How prompts are read: see `attach`. `growth` is the sidecar's, None without one.

    decoding: whether a single token is one that was generated, not a prompt; None: if it comes with a cache
    """

    sidecar: Sidecar | None
    growth: Growth | None
    method: str
    filter_decode: bool | None  # None: as the sidecar says
    decoding: bool | None = None


@dataclass
class Call:
    """From the first mixer of a call to the last.

    settings, total_length, observer: what the call began with
    asked: the arguments of the model itself, where it was called as a whole
    state: how far its rows are read, this call included; what its cache will remember
    padding: of this call's tokens (B, L); None = none
    plans: one a layer; protected: r
    kept: (B, K) positions a mixer kept, until its block has gathered the residual stream
    """

    settings: Settings
    total_length: float | None
    observer: Observer | None
    asked: Mapping[str, Any]
    state: State
    padding: Padding | None = None
    plans: Sequence[LayerPlan] = ()
    protected: int = 1
    kept: Tensor | None = None

    @property
    def mask(self) -> Tensor | None:
        """(B, L) bool, padding on the left."""
        return None if self.padding is None else self.padding.mask


class Here(threading.local):
    """One thread's calls: the one under way, what the next begins with, and what the last prompt was read with."""

    settings: Settings | None = None  # instead of the model's own
    total_length: float | None = None
    observer: Observer | None = None
    call: Call | None = None
    begun: Call | None = None  # at its rotary embedding; the first mixer has not been reached
    plan: Plan | tuple[Plan, ...] | None = None
    positions: Tensor | None = None

    def __init__(self) -> None:
        self.asked: Mapping[str, Any] = {}
