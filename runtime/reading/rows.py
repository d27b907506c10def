"""Rows of unequal length that are decimated: read in groups of equal length, so that none is padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .prefill import Output
from .state import State


def prefill_by_length(ids: Tensor, mask: Tensor, read: Callable[[Tensor], Output]) -> Output:
    """Read each group of equally long rows of left-padded ids (B, L) with `read`; rows come back in their order."""
    lengths = mask.sum(1).tolist()
    order: list[int] = []
    outputs = []
    for length in sorted(set(lengths)):
        rows = [b for b, n in enumerate(lengths) if n == length]
        outputs.append(read(ids[rows, -length:]))
        order += rows
    back = torch.tensor(order, device=ids.device).argsort()
    K = max(out.positions.shape[1] for out in outputs)
    logits = torch.cat([F.pad(out.logits, (0, 0, K - out.logits.shape[1], 0)) for out in outputs])
    positions = torch.cat([F.pad(out.positions, (K - out.positions.shape[1], 0), value=-1) for out in outputs])
    state = join_states([out.state for out in outputs]).rows(back.tolist())
    return Output(logits[back], positions[back], state, state.plan)


def join_states(states: Sequence[State]) -> State:
    """The rows of several states as one; none may be waiting for the rest of a prompt."""
    first = states[0].clone()
    if len(states) == 1:
        return first
    first.conv, first.ssm = torch.cat([s.conv for s in states], 1), torch.cat([s.ssm for s in states], 1)
    first.length = torch.cat([s.length for s in states])
    first.plan = tuple(plan for s in states for plan in (s.plans if len(s.plans) == s.batch else s.plans * s.batch))
    return first
