"""Medians with 20/80 quantiles, and the line that names the machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import lru_cache

import torch
import triton


def quantiles(run: Callable[[], object], device: str) -> tuple[float, float, float]:
    """Milliseconds: 20% quantile, median, 80% quantile; by events and with a cold level-2 cache on a GPU."""
    if device == "cuda":
        low, middle, high = triton.testing.do_bench(run, warmup=100, rep=400, quantiles=[0.2, 0.5, 0.8])
        return low, middle, high
    times = []
    for _ in range(2):
        began = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began))
    cuts = statistics.quantiles(times, n=5, method="inclusive")
    return cuts[0], statistics.median(times), cuts[-1]


@lru_cache
def bandwidth(device: str) -> float:
    """Bytes a second that a large copy reaches here, read and written: what bounds in bytes are divided by."""
    a = torch.empty(2**30 if device == "cuda" else 2**24, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2e3 * a.numel() / quantiles(lambda: b.copy_(a), device)[1]


def machine(device: str) -> str:
    """Chip, versions and day, for the head of every table."""
    chip = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores, Triton's interpreter"
    versions = f"torch {torch.__version__}, triton {triton.__version__}, python {platform.python_version()}"
    return f"{chip}; {versions}; {time.strftime('%Y-%m-%d')}"
