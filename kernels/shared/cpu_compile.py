"""How every loop is compiled: once, for the signature written beside it, and kept in numba's cache on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from .cpu_cache import CACHE
from .cpu_math import FAST


def compiled(signature: str, parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator. Whatever views the loop is given, there is one binary: "::1" is contiguous, ":" any strides."""
    return njit(signature, parallel=parallel, fastmath=FAST, cache=CACHE, error_model="numpy", nogil=True)
