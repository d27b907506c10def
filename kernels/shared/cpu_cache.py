"""Where numba keeps compiled loops between processes, if anywhere."""

from __future__ import annotations

import logging

from numba import njit

_log = logging.getLogger("longscan.kernels")


def cache_folder() -> str | None:
    """The folder, or None where neither the package's own nor the user's cache can be written.

    NUMBA_CACHE_DIR names another. A shared temporary folder is no substitute: what is cached is code that will be run.
    """
    try:
        return str(njit(cache=True)(_probe).stats.cache_path)
    except RuntimeError:  # "cannot cache function: no locator available"
        return None


def _probe() -> None:
    """Stands for the loops beside it; never compiled."""


def _can_cache() -> bool:
    if cache_folder() is not None:
        return True
    _log.warning("kernels: compiled loops cannot be kept, so every process compiles them; set NUMBA_CACHE_DIR")
    return False


CACHE = _can_cache()  # what `njit(cache=...)` is given
