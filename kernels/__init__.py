"""Filtered selective scan and its companions, in three backends: reference, cpu (numba) and triton."""

from .api import causal_conv1d, selective_scan, selective_step, token_scores

__all__ = ["causal_conv1d", "selective_scan", "selective_step", "token_scores"]
