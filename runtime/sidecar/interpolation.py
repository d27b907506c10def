"""g at any length, from g at some lengths."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Interpolation = Literal["log", "nearest"]


def look_up(lengths: Sequence[int], table: Tensor, length: float, interpolation: Interpolation = "log") -> Tensor:
    """Row of `table` (K, channels) at `length`; `lengths` (K,) ascend.

    "log" is linear in log S and log g between neighbours that are both > 0; a stored 0 stays 0 up to the next entry.
    Below the first row the first holds, beyond the last the last: g has no law of its own that a line could go on by.
    "nearest" is the papers' reading: the nearest entry, the shorter on a tie.
    """
    right = bisect_left(lengths, length)
    if right in (0, len(lengths)):
        return table[min(right, len(lengths) - 1)].clone()
    low, high = table[right - 1], table[right]
    if lengths[right] == length:
        return high.clone()
    if interpolation == "nearest":
        return (low if length - lengths[right - 1] <= lengths[right] - length else high).clone()
    weight = math.log(length / lengths[right - 1]) / math.log(lengths[right] / lengths[right - 1])
    between = torch.exp((1 - weight) * torch.log(low) + weight * torch.log(high))
    return torch.where((low > 0) & (high > 0), between, low)
