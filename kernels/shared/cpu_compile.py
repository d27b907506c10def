"""How every loop is compiled: once, for each signature written beside it, and kept in numba's cache on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

from .cpu_cache import CACHE
from .cpu_math import FAST


def sources(folder: Path) -> str:
    """A digest of all loops below a folder, and of what they call (cpu_*.py)."""
    texts = (path.read_bytes() for path in sorted(folder.rglob("cpu_*.py")))
    return hashlib.sha256(b"".join(hashlib.sha256(text).digest() for text in texts)).hexdigest()


SOURCES = sources(Path(__file__).parents[1])


def compiled(*signatures: str, parallel: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator. Whatever views the loop is given, one binary a signature: "::1" is contiguous, ":" any strides.

    numba takes a binary from its cache as long as the loop's own file stands as it was, though other files' functions
    are compiled into it. Here it must have been made from all files as they are.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        loop: Any = njit(parallel=parallel, fastmath=FAST, cache=CACHE, error_model="numpy", nogil=True)(function)
        if CACHE:
            loop._cache._cache_file._source_stamp = SOURCES
        for signature in signatures:
            loop.compile(signature)
        loop.disable_compile()
        return loop

    return decorate
