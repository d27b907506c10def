"""Filtered selective scans (Mamba-1, Mamba-2) and their companions, in three backends: reference, cpu and triton.

In: a layer's tensors and what the filter keeps. Out: what the layer computes, and its state. A folder an operation:
`api` checks the arguments, `reference` is the oracle, `cpu` and `triton` are the fast forms; `aot` compiles every
Triton kernel without a GPU, `operators` is what torch.compile and torch.export see.
"""

from .conv.api import causal_conv1d, causal_conv1d_step
from .linear.api import linear
from .norm.api import add_rms_norm, gated_rms_norm, inner_rms_norm, rms_norm
from .scan.api import selective_scan, selective_step
from .scores.api import token_scores
from .shared.cut import raw_delta_cut
from .ssd.api import ssd_scan, ssd_step

__all__ = [
    "add_rms_norm",
    "causal_conv1d",
    "causal_conv1d_step",
    "gated_rms_norm",
    "inner_rms_norm",
    "linear",
    "raw_delta_cut",
    "rms_norm",
    "selective_scan",
    "selective_step",
    "ssd_scan",
    "ssd_step",
    "token_scores",
]
