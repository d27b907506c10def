"""mamba_ssm on a machine without CUDA: an empty module stands in for its extension."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def importable() -> Iterator[ModuleType]:
    """The library, imported for a while alone: transformers would take its GPU kernels for usable."""
    before = set(sys.modules)
    sys.modules["selective_scan_cuda"] = ModuleType("selective_scan_cuda")
    try:
        import mamba_ssm

        yield mamba_ssm
    finally:
        for name in set(sys.modules) - before:
            if name.split(".")[0] in ("mamba_ssm", "selective_scan_cuda"):
                del sys.modules[name]
