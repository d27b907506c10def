"""Random inputs of the scan, with and without each option."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
OPTIONS = ("D", "z", "delta_bias", "threshold", "scale", "index", "mask", "initial_state")


def scan_inputs(B: int, L: int, D: int, N: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every argument of selective_scan; x and z are halves of one tensor, B and C too: strided, as in the model."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    xz, bc = rand(B, L, 2 * D).to(dtype), rand(B, L, 2 * N).to(dtype)
    index = torch.arange(0, L, 2).expand(B, -1).contiguous()
    if index.shape[1] > 2:
        index[-1, 0] = -1  # one row has a token less
    return {
        "x": xz[:, :, :D],
        "delta": (rand(B, L, D) - 2).to(dtype),
        "A": -torch.rand(D, N, generator=g) * 8 - 0.01,
        "B": bc[:, :, :N],
        "C": bc[:, :, N:],
        "D": rand(D),
        "z": xz[:, :, D:],
        "delta_bias": rand(D),
        "threshold": torch.rand(B, D, generator=g) * 0.3,
        "scale": torch.rand(D, generator=g) + 0.5,
        "index": index,
        "mask": torch.rand(B, L, generator=g) > 0.2,
        "initial_state": rand(B, D, N),
    }


def ssd_inputs(
    B: int, L: int, H: int, P: int, G: int, N: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Every argument of ssd_scan; z, x, B, C and delta are slices of one projection: strided, as in the model."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    z, x, b, c, delta = rand(B, L, 2 * H * P + 2 * G * N + H).to(dtype).split([H * P, H * P, G * N, G * N, H], -1)
    index = torch.arange(0, L, 2).expand(B, -1).contiguous()
    if index.shape[1] > 2:
        index[-1, 0] = -1  # one row has a token less
    return {
        "x": x.unflatten(-1, (H, P)),
        "delta": delta,
        "A": -torch.rand(H, generator=g) * 16 - 0.01,
        "B": b.unflatten(-1, (G, N)),
        "C": c.unflatten(-1, (G, N)),
        "D": rand(H, P),
        "z": z.unflatten(-1, (H, P)),
        "delta_bias": rand(H) - 2,
        "threshold": torch.rand(B, H, generator=g) * 0.3,
        "scale": torch.rand(H, generator=g) + 0.5,
        "index": index,
        "mask": torch.rand(B, L, generator=g) > 0.2,
        "initial_state": rand(B, H, P, N),
    }


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


def without(inputs: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {k: v for k, v in inputs.items() if k not in names}


def load_benchmark(name: str) -> ModuleType:
    """A module of benchmarks/, whose scripts import each other by their bare names.

    Under `python -m pytest` transformers may have imported the folder `kernels` by the name of one.
    """
    taken = sys.modules.get(name)
    if taken is not None and Path(str(taken.__file__)).parent != BENCHMARKS:
        del sys.modules[name]
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))
