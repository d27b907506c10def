"""A sidecar's identity: what a saved state remembers of it."""

from __future__ import annotations

import hashlib

import torch

from .sidecar import Sidecar, canonical


def digest(sidecar: Sidecar | None) -> str:
    """sha256 over canonical metadata and tensors, 64 hex digits; "" for no sidecar. Equal for equal contents."""
    if sidecar is None:
        return ""
    found = hashlib.sha256(canonical(sidecar.metadata).encode())
    for name in sorted(sidecar.tensors):
        tensor = sidecar.tensors[name].detach().cpu().contiguous()
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
