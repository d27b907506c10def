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

from longscan.kernels import selective_scan

B, L, D, N = 1, 2048, 1536, 16


def torch_path(x, delta, A, B_, C, D_, z):  # type: ignore[no-untyped-def]
    """The scan of transformers' MambaMixer.slow_forward: (B, D, L) layout, discretised tensors, a loop over time."""
    x, delta, z = (t.transpose(1, 2) for t in (x, delta, z))
    delta = torch.nn.functional.softplus(delta)
    a = torch.exp(A[None, :, None, :] * delta[:, :, :, None])
    b_x = delta[:, :, :, None] * B_[:, None, :, :] * x[:, :, :, None]
    state = torch.zeros(x.shape[0], x.shape[1], A.shape[1])
    out = []
    for t in range(x.shape[2]):
        state = a[:, :, t, :] * state + b_x[:, :, t, :]
        out.append(torch.matmul(state, C[:, t, :].unsqueeze(-1))[:, :, 0])
    y = torch.stack(out, dim=-1) + x * D_[None, :, None]
    return (y * torch.nn.functional.silu(z)).transpose(1, 2)


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
    print(f"selective scan, B={B} L={L} D={D} N={N}, float32, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"  longscan cpu backend   {ours * 1e3:9.1f} ms   {L * D * N / ours / 1e9:.2f} G state updates/s")
    print(f"  transformers torch path{theirs * 1e3:9.1f} ms")
    print(f"  ratio                  {theirs / ours:9.1f} x   (relative RMS difference {error:.1e})")


if __name__ == "__main__":
    main()
