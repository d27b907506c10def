"""The CPU backend: tensors in, numba loops, tensors out. float32 inside, whatever the inputs' dtype."""

from __future__ import annotations

import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_scan, reference

# numba's default threading layer is not safe to enter from several Python threads at once.
_one_at_a_time = threading.Lock()


def _array(t: Tensor | None, dimensions: int = 1) -> np.ndarray:
    """A float32 view of a tensor, strided in place; a copy only of another dtype. Size 0 for None."""
    if t is None:
        return np.empty((0,) * dimensions, np.float32)
    array: np.ndarray = t.detach().float().numpy()
    return array


def _rows_of_vectors(t: Tensor | None, pad: int = 0) -> np.ndarray:
    """(B, L, F) with its last dimension side by side and padded: a view of the model's own tensors, else a copy."""
    if t is None:
        return np.empty((0, 0, 0), np.float32)
    t = t.float()  # first, as a converted copy may lie in another order
    if pad:
        return _array(F.pad(t, (0, pad)))
    return _array(t if t.stride(-1) == 1 else t.contiguous())


def _packed(t: Tensor | None, dimensions: int = 1) -> np.ndarray:
    """The same, contiguous: what the inner loops read as whole vectors."""
    return _array(None if t is None else t.contiguous(), dimensions)


def _rows(t: Tensor | None, batch: int) -> np.ndarray:
    """(D,) or (B, D) -> (B, D); size 0 for None."""
    if t is None:
        return np.empty((0, 0), np.float32)
    return _array(t if t.dim() == 2 else t.expand(batch, -1))


def _mask(mask: Tensor | None) -> np.ndarray:
    array: np.ndarray = np.empty((0, 0), np.bool_) if mask is None else mask.numpy()
    return array


def _may_grow(delta: Tensor, A: Tensor, delta_softplus: bool, scale: Tensor | None) -> bool:
    """Whether exp(delta A) may exceed 1: a negative A and a positive delta, the model's, never do."""
    if (A > 0).any() or (scale is not None and (scale < 0).any()):
        return True
    return not delta_softplus and bool((delta < 0).any())


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    threshold: Tensor | None,
    scale: Tensor | None,
    index: Tensor | None,
    mask: Tensor | None,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.selective_scan."""
    if _may_grow(delta, A, delta_softplus, scale):  # the loops below know 2^x for x <= 0 only
        return reference.selective_scan(
            x, delta, A, B, C, D, z, delta_bias, delta_softplus, threshold, scale, index, mask, initial_state
        )
    batch, L, channels = x.shape
    steps = L if index is None else index.shape[1]
    pad = -channels % cpu_scan.LANES  # real models have none
    y = torch.empty(batch, steps, channels + pad)
    state = torch.zeros(batch, channels + pad, A.shape[1])
    if initial_state is not None:
        state[:, :channels] = initial_state
    if pad:
        A = F.pad(A, (0, 0, 0, pad))
        D, delta_bias, threshold, scale = (
            None if t is None else F.pad(t, (0, pad)) for t in (D, delta_bias, threshold, scale)
        )
    places = np.empty((0, 0), np.int64) if index is None else index.numpy()
    if steps and batch:
        with _one_at_a_time:
            cpu_scan.scan(
                _rows_of_vectors(x, pad),
                _rows_of_vectors(delta, pad),
                _packed(A),
                _rows_of_vectors(B),
                _rows_of_vectors(C),
                _packed(D),
                _rows_of_vectors(z, pad),
                _packed(delta_bias),
                delta_softplus,
                _rows(threshold, batch),
                _rows(scale, batch),
                places,
                _mask(mask),
                y.numpy(),
                state.numpy(),
            )
    if pad:
        y, state = y[:, :, :channels].contiguous(), state[:, :channels].contiguous()
    return y.to(x.dtype), state


def selective_step(
    state: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    threshold: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    """See longscan.kernels.selective_step."""
    y = torch.empty(x.shape)
    batch = x.shape[0]
    cpu_scan.step(
        state.numpy(),
        _array(x),
        _array(delta),
        _packed(A),
        _array(B),
        _array(C),
        _packed(D),
        _array(z, 2),
        _packed(delta_bias),
        delta_softplus,
        _rows(threshold, batch),
        _rows(scale, batch),
        y.numpy(),
    )
    return y.to(x.dtype)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See longscan.kernels.causal_conv1d."""
    (batch, L, channels), W = x.shape, weight.shape[1]
    if initial_state is None:
        before = torch.zeros(batch, W - 1, channels, dtype=x.dtype)
    else:
        before = initial_state.transpose(1, 2).to(x.dtype)
    y = torch.empty(batch, L, channels)
    shift = torch.zeros(channels) if bias is None else bias
    with _one_at_a_time:
        cpu_scan.conv(_array(x), _packed(weight.T), _packed(shift), _packed(before), _mask(mask), y.numpy())
    tail = x[:, max(0, L - (W - 1)) :]
    if mask is not None:
        tail = torch.where(mask[:, max(0, L - (W - 1)) :, None], tail, 0.0)
    last = torch.cat([before, tail], 1)[:, -(W - 1) :] if W > 1 else before
    return y.to(x.dtype), last.transpose(1, 2).contiguous()


def token_scores(
    delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, mask: Tensor | None, weight: Tensor | None
) -> Tensor:
    """See longscan.kernels.token_scores."""
    out = torch.empty(delta.shape[:2])
    channels = delta.shape[2]
    with _one_at_a_time:
        cpu_scan.scores(
            _packed(delta),
            _packed(torch.zeros(channels) if delta_bias is None else delta_bias),
            delta_softplus,
            _mask(mask),
            _packed(torch.ones(channels) if weight is None else weight),
            out.numpy(),
        )
    return out
