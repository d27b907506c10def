"""Mamba-2's scan beside mamba-ssm's, for benchmarks/kernels.py: shapes, arguments, calls and the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from longscan.kernels import ssd_scan

HEADS = {"mamba2-130m": 24, "mamba2-1.3b": 64, "mamba2-2.7b": 80}  # of P channels; one group of N states
P, N, CHUNK = 64, 128, 256
CHECKED = 2048  # tokens that the float64 reference, a loop over time, looks at


@dataclass(frozen=True)
class SSDCase:
    """One shape: a model's heads, batch and tokens."""

    model: str
    batch: int
    length: int

    @property
    def bytes(self) -> int:
        """What a scan must move in bfloat16: x, z, y, delta, B and C."""
        return 2 * self.batch * self.length * (HEADS[self.model] * (3 * P + 1) + 2 * N)


def ssd_inputs(case: SSDCase, device: str) -> dict[str, Tensor]:
    """Arguments as a trained model would give them: delta between 1e-3 and 1e-1, A between -1 and -16."""
    g = torch.Generator(device).manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device, dtype=torch.bfloat16)

    B, L, H = case.batch, case.length, HEADS[case.model]
    bias = torch.expm1(torch.logspace(-3, -1, H, device=device)).log()
    return {
        "x": rand(B, L, H, P), "delta": rand(B, L, H).mul_(0.3), "A": -torch.linspace(1, 16, H, device=device),
        "B": rand(B, L, 1, N), "C": rand(B, L, 1, N), "D": torch.ones(H, device=device), "z": rand(B, L, H, P),
        "delta_bias": bias,
    }  # fmt: skip


def ssd_kernels(a: dict[str, Tensor], device: str) -> Iterator[tuple[str, dict[str, Tensor], Callable[[], Tensor]]]:
    """(name, arguments the oracle needs, a call that returns y (B, L, H, P))."""
    filtered = {**a, "threshold": torch.nn.functional.softplus(a["delta_bias"])}  # keeps about half of the tokens
    yield "longscan", a, lambda: ssd_scan(**a, backend="triton")[0]
    yield "longscan filtered", filtered, lambda: ssd_scan(**filtered, backend="triton")[0]
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError:
        return
    if device == "cuda":
        parts = {"D": a["D"], "z": a["z"], "dt_bias": a["delta_bias"], "dt_softplus": True}
        given = [a[k] for k in ("x", "delta", "A", "B", "C")]
        yield "mamba-ssm triton", a, lambda: mamba_chunk_scan_combined(*given, CHUNK, **parts)


def ssd_error(y: Tensor, a: dict[str, Tensor]) -> float:
    """Relative RMS of y's first tokens against float64, of the last row."""
    part = {k: v[-1:, :CHECKED] if v.dim() > 2 else v for k, v in a.items()}
    wanted = ssd_scan(**{k: v.double() for k, v in part.items()}, backend="reference")[0]
    return float((y[-1:, :CHECKED].double() - wanted).norm() / wanted.norm())
