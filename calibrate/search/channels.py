"""Which channels a method acts on, from what the measuring pass found."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..measure.measuring import LayerMeasurement
from .candidates import ScoreChannels

_LOCAL_LOG_DECAY, _TOP_SHARE = -2.0, 0.2  # "global" for a score: log decay > -2, or the top fifth of the layer


def global_channels(layer: LayerMeasurement, log_theta: float) -> Tensor:
    """LongMamba's classification of one layer: (D,) bool, decay > theta."""
    return layer.decay() > log_theta


def score_weights(layer: LayerMeasurement, score: ScoreChannels) -> Tensor:
    """Weights w (D,) float32 of decimation's score sqrt(sum_d w_d delta_d^2).

    all: 1, the published norm
    global: 1 in the layer's global channels, 0 in the others, whose large deltas mark what is new, not what lasts
    """
    decay = layer.decay()
    if score == "all":
        return torch.ones(len(decay))
    return ((decay >= decay.quantile(1 - _TOP_SHARE)) | (decay > _LOCAL_LOG_DECAY)).float()


def furthest(layers: Sequence[LayerMeasurement], top: float) -> Tensor:
    """The `top` share of all channels of the model with the largest mean distance: (n_layer, D) bool."""
    reach = torch.stack([layer.reach() for layer in layers])
    least = reach.flatten().sort(descending=True).values[max(1, round(top * reach.numel())) - 1]
    return reach >= least
