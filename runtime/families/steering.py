"""What decides how fast each channel of a layer forgets: A and delta. Methods and calibration look at nothing else.

A *channel* is a d_inner index in Mamba-1 and a head in Mamba-2: where delta has one value a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ...kernels import token_scores


@dataclass(frozen=True, kw_only=True)
class Steering:
    """A: (D, N) for Mamba-1, (H,) for Mamba-2, float32, negative; dt_bias: (channels,) float32; limit: of delta."""

    A: Tensor
    dt_bias: Tensor
    limit: tuple[float, float] = (0.0, math.inf)

    @property
    def channels(self) -> int:
        """Values of delta a token; the width of a sidecar's tables."""
        return self.dt_bias.shape[0]

    @property
    def limited(self) -> bool:
        """Whether `limit` can change a delta."""
        return self.limit[0] > 0 or not math.isinf(self.limit[1])

    def positive(self, delta: Tensor) -> Tensor:
        """delta as the projection gives it (..., channels) -> clamp(softplus(delta + dt_bias), *limit), float32."""
        found = F.softplus(delta.float() + self.dt_bias.float())
        return found.clamp(*self.limit) if self.limited else found

    def scores(self, delta: Tensor, weight: Tensor | None, backend: str = "auto") -> Tensor:
        """DeciMamba's score of each token, delta (B, L, channels) -> (B, L) float32; see kernels.token_scores."""
        if self.limited:
            return token_scores(self.positive(delta), None, False, weight=weight, backend=backend)
        return token_scores(delta, self.dt_bias, weight=weight, backend=backend)
