"""A sidecar's identity: what a saved state remembers of it."""

from __future__ import annotations

from ..files import digest_of
from .sidecar import Sidecar


def digest(sidecar: Sidecar | None) -> str:
    """sha256 over canonical metadata and tensors, 64 hex digits; "" for no sidecar. Equal for equal contents."""
    return "" if sidecar is None else digest_of(sidecar.metadata, sidecar.tensors)
