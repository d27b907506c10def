"""What a file that a user can hand in is: how a good one is made, how it is mutated, what reading it must give.

A target's `read` either returns (read right), raises (refused, or a fault: the driver tells which), or raises Wrong.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

IDS = torch.tensor([[(7 * k) % 60 for k in range(40)]])
SMALL = {"M": 16, "n_layer": 2, "V": 64, "N": 4}


class Wrong(Exception):
    """It was read, and what came out is not what the file says."""


@dataclass(frozen=True)
class Target:
    """data: the good file; mutate: (data, draw) -> bytes; read: what a user would do with it, given those bytes."""

    data: bytes
    mutate: Callable[[bytes, Random], bytes]
    read: Callable[[bytes], None]


def same(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    if not torch.equal(found, wanted):
        raise Wrong(f"{what}: other numbers were read than were written")


def strict(text: str | bytes) -> Any:
    """JSON in which every key is given once; ValueError otherwise."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key is given twice")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def shown(data: bytes) -> str:
    """A mutated file for a report of a fault."""
    return base64.b64encode(data[:3000]).decode()
