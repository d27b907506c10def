"""The CPU scan beside transformers' torch path, at the mamba-130m shape, in one run.

    python benchmarks/kernels_cpu.py

Prints medians of seven runs and their ratio, after checking that both compute the same numbers.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from longscan.kernels import selective_scan

B, L, D, N = 1, 2048, 1536, 16


def torch_path(x, delta, A, B_, C, D_, z):
    """transformers' own scan in torch, in its (B, D, L) layout; what its models run without mamba-ssm."""
    wide = (x.transpose(1, 2), delta.transpose(1, 2), A, B_.transpose(1, 2), C.transpose(1, 2), D_, z.transpose(1, 2))
    return mamba_selective_scan(*wide, delta_softplus=True).transpose(1, 2)


def median(run: Callable[[], object], times: int) -> float:
    run()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    torch.manual_seed(0)
    x, delta, z = torch.randn(B, L, D), torch.randn(B, L, D) - 3, torch.randn(B, L, D)
    A = -torch.arange(1.0, N + 1).repeat(D, 1)
    B_, C, D_ = torch.randn(B, L, N), torch.randn(B, L, N), torch.ones(D)
    with torch.inference_mode():
        wanted = torch_path(x, delta, A, B_, C, D_, z)
        found, _ = selective_scan(x, delta, A, B_, C, D_, z, backend="cpu")
        error = float((found - wanted).norm() / wanted.norm())
        if error > 1e-5:
            raise SystemExit(f"Error: the results differ by {error:.1e} (relative RMS); no speed is reported")
        ours = median(lambda: selective_scan(x, delta, A, B_, C, D_, z, backend="cpu"), 7)
        theirs = median(lambda: torch_path(x, delta, A, B_, C, D_, z), 3)
    print(
        f"selective scan, B={B} L={L} D={D} N={N}, float32, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    print(f"  longscan cpu backend   {ours * 1e3:9.1f} ms   {L * D * N / ours / 1e9:.2f} G state updates/s")
    print(f"  transformers torch path{theirs * 1e3:9.1f} ms")
    print(f"  ratio                  {theirs / ours:9.1f} x   (relative RMS difference {error:.1e})")


if __name__ == "__main__":
    main()
