"""Filtered selective scans (Mamba-1, Mamba-2) and their companions, in three backends: reference, cpu and triton."""

from .api import causal_conv1d, selective_scan, selective_step, token_scores
from .ssd_api import ssd_scan, ssd_step

__all__ = ["causal_conv1d", "selective_scan", "selective_step", "ssd_scan", "ssd_step", "token_scores"]
