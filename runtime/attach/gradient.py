"""No gradient passes through an attached mixer: whoever asks for one is told, and gets no other number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, asked: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise ValueError("an attached model gives no gradients; detach(model) before backward()")


def without_gradient(hidden: Tensor, out: Tensor) -> Tensor:
    """`out`, computed from `hidden` without a graph; a backward pass that reaches it raises ValueError."""
    asked = hidden if hidden.requires_grad else hidden.new_zeros((), requires_grad=True)
    refused: Tensor = _Refused.apply(out, asked)
    return refused
