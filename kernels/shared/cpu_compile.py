"""How every loop is compiled: once, for each signature written beside it, and kept in numba's cache on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

from .cpu_cache import CACHE
from .cpu_math import FAST


def compiled(*signatures: str, parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator. Whatever views the loop is given, one binary a signature: "::1" is contiguous, ":" any strides."""
    return njit(list(signatures), parallel=parallel, fastmath=FAST, cache=CACHE, error_model="numpy", nogil=True)
