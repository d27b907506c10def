"""How many tokens go through the layers at once: from the device's memory, halved when that was too many."""

from __future__ import annotations

import os

import torch

from ..families.weights import Weights

_SHARE = 32  # of the device's memory
_MOST = {"cpu": 16 * 2**20, "cuda": 2**30}  # bytes; more makes nothing faster
_FEWEST = 512  # tokens over all rows; fewer waste the matrix products


def pick_chunk(weights: Weights, batch: int) -> int:
    """Tokens a row and pass: a power of two whose activations fill a small share of the device's memory.

    The device's whole memory counts, not what is free of it, so that the same kind of machine reads a prompt in the
    same chunks, to the same bits. Where less is free, the chunk halves itself.
    """
    device = weights.embedding.device
    budget = min(_memory(device) // _SHARE, _MOST.get(device.type, _MOST["cpu"]))
    fits = max(budget // bytes_a_token(weights), _FEWEST) // batch
    return 1 << max(0, fits.bit_length() - 1)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system says
        return _SHARE * _MOST["cpu"]


def bytes_a_token(weights: Weights) -> int:
    """What a token occupies at most while it passes a layer: the residual (float32) before and after, and the rest."""
    M, layer, dtype = weights.embedding.shape[1], weights.layers[0], weights.embedding.dtype
    scratch = layer.scratch(dtype, weights.embedding.device.type)
    return 12 * M + dtype.itemsize * (M + layer.width) + 4 * scratch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a pass failed for want of memory; torch's CPU allocator raises a bare RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
