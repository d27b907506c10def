"""What the forward pass asks of a layer, whatever its family.

    B batch   L tokens   K tokens scanned   M d_model   E width of x   W conv width

A layer is a few tensors, its projections, and three functions: `inputs` (everything before the scan), `scan` (the scan
and what follows it, for many tokens) and `step` (both, for one token). x, delta, B, C and z travel flat,
(B, L, features), so that decimation gathers them alike; `shaped` gives them the shapes of the family's equations.

A projection is whatever maps (..., in) to (..., out): `Linear` in a model that `load` read, the module itself, with its
adapters and quantised weights, in a model that `attach` runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...kernels import linear
from ..sidecar.plan import LayerPlan


class Inputs(NamedTuple):
    """What a scan reads, flat: (B, L, features). delta is as projected, before bias and softplus."""

    x: Tensor
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor


Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Linear:
    """weight (out, in), bias (out,) or None."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Norm:
    """In front of a layer: weight (M,), bias (M,) for LayerNorm models only, and the dtype the layer computes in."""

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype


class Layer(Protocol):
    """A mixer. `Steering` is the part of it that methods and calibration see."""

    # Read-only members, as those of frozen dataclasses are.
    @property
    def A(self) -> Tensor: ...
    @property
    def dt_bias(self) -> Tensor: ...
    @property
    def channels(self) -> int: ...
    @property
    def conv_shape(self) -> tuple[int, ...]:
        """Of one sequence's conv state: (channels of the convolution, W-1)."""

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Of one sequence's ssm state: (D, N), or (H, P, N)."""

    @property
    def width(self) -> int:
        """Values a token occupies at most while it passes the layer, without the residual and its norm."""

    def scratch(self, dtype: torch.dtype, device: str) -> int:
        """Float32 values a token needs beside them in a model of `dtype` on a device of this type."""

    def positive(self, delta: Tensor) -> Tensor: ...
    def scores(self, delta: Tensor, weight: Tensor | None, backend: str = "auto") -> Tensor: ...

    def inputs(self, hidden: Tensor, conv: Tensor, mask: Tensor | None, backend: str) -> tuple[Inputs, Tensor]:
        """hidden (B, L, M), conv state (B, *conv_shape), mask (B, L) -> what the scan reads, and the new conv state."""

    def shaped(self, inputs: Inputs) -> Inputs:
        """Views in the shapes of the family's scan."""

    def scan(
        self, inputs: Inputs, plan: LayerPlan, mask: Tensor | None, state: Tensor | None, backend: str
    ) -> tuple[Tensor, Tensor]:
        """Tokens in time order, the ssm state (B, *state_shape) or None = zeros -> output (B, K, M), to be added to the
        residual, and the new ssm state."""

    def step(self, hidden: Tensor, conv: Tensor, state: Tensor, plan: LayerPlan, backend: str) -> Tensor:
        """One token a row: hidden (B, M) -> output (B, M). Both states are updated in place."""


def project(projection: Projection, x: Tensor, backend: str) -> Tensor:
    """projection(x). A few tokens on a CPU go through its own loop; another library's module runs as it is."""
    if isinstance(projection, Linear):
        return linear(x, projection.weight, projection.bias, backend=backend)
    return projection(x)


def conv_inputs(raw: Tensor, before: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The convolution's inputs with what was read before standing right in front of each row's first token.

    raw: (B, L, E); before: (B, E, W-1), the inputs of earlier calls, oldest first
    mask: (B, L) bool, padding on the left

    Padding between the two would part a text from its own past. Returns raw and before, moved: outputs at real tokens
    and the last W-1 inputs are then those of the row alone.
    """
    if mask is None:
        return raw, before
    W1 = before.shape[2]
    row = torch.cat([before.transpose(1, 2).to(raw.dtype), raw], 1)  # (B, W-1+L, E)
    pads = (~mask).sum(1)[:, None]
    at = torch.arange(row.shape[1], device=raw.device).expand(row.shape[0], -1)
    at = torch.where(at < W1 + pads, (at - pads).clamp(min=0), at)
    row = row.gather(1, at[:, :, None].expand_as(row))
    return row[:, W1:], row[:, :W1].transpose(1, 2)
