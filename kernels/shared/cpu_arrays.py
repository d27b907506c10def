"""Tensors as numba's loops take them: float32 inside, whatever the inputs' dtype; size 0 for what is absent."""

from __future__ import annotations

import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# numba's workqueue, its threading layer where there is neither TBB nor OpenMP, may not be entered by several threads.
one_at_a_time = threading.Lock()


def array(t: Tensor | None, dimensions: int = 1) -> np.ndarray:
    """A float32 view of a tensor, strided in place; a copy only of another dtype. Size 0 for None."""
    if t is None:
        return np.empty((0,) * dimensions, np.float32)
    plain = t.dtype == torch.float32 and not t.requires_grad  # asked first: a decode step makes hundreds of views
    values: np.ndarray = t.numpy() if plain else t.detach().float().numpy()
    return values


def rows_of_vectors(t: Tensor | None, pad: int = 0) -> np.ndarray:
    """(B, L, F) with its last dimension side by side and padded: a view of the model's own tensors, else a copy."""
    if t is None:
        return np.empty((0, 0, 0), np.float32)
    t = t.float()  # first, as a converted copy may lie in another order
    if pad:
        return array(F.pad(t, (0, pad)))
    return array(t if t.stride(-1) == 1 else t.contiguous())


def packed(t: Tensor | None, dimensions: int = 1) -> np.ndarray:
    """The same, contiguous: what the inner loops read as whole vectors."""
    return array(None if t is None else t.contiguous(), dimensions)


def rows(t: Tensor | None, batch: int) -> np.ndarray:
    """(D,) or (B, D) -> (B, D); size 0 for None."""
    if t is None:
        return np.empty((0, 0), np.float32)
    return array(t if t.dim() == 2 else t.expand(batch, -1))


def mask_array(mask: Tensor | None) -> np.ndarray:
    values: np.ndarray = np.empty((0, 0), np.bool_) if mask is None else mask.numpy()
    return values
