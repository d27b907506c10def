"""The public functions launched as on a GPU, without one: Triton's own binder specialises the real arguments, and every
kernel is compiled for sm_90 instead of run. To be run without the interpreter.

python launches.py      one JSON object: case -> names of the kernels compiled for it
"""

from __future__ import annotations

import json
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from longscan.kernels import (
    add_rms_norm,
    causal_conv1d,
    causal_conv1d_step,
    gated_rms_norm,
    inner_rms_norm,
    selective_scan,
    selective_step,
    ssd_scan,
    ssd_step,
    token_scores,
)
from longscan.kernels.sketch.triton import histogram_triton

launch = JITFunction.run
compiled: list[str] = []


class NoDevice:
    """What a launch asks of a driver before it needs the device."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_device_interface(self) -> Any:
        return torch.cpu


def compile_only(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
    known = len(self.device_caches[0][0])
    kernel = launch(self, *args, **{**kwargs, "warmup": True})
    if len(self.device_caches[0][0]) > known:
        compiled.append(self.__name__)
    return kernel


def mamba1(L: int, D: int, N: int, options: bool, layout: Any = lambda t: t) -> None:
    """Every function on one row; `layout` places each tensor."""

    def rand(*shape: int) -> torch.Tensor:
        return layout(torch.rand(*shape))

    extra: dict[str, Any] = {}
    if options:
        extra = {"D": rand(D), "z": rand(1, L, D), "delta_bias": rand(D), "threshold": rand(D), "scale": rand(1, D)}
    gathered = {"mask": torch.ones(1, L).bool(), "index": torch.arange(L)[None], "initial_state": rand(1, D, N)}
    x, delta, A, B, C = rand(1, L, D), rand(1, L, D), -rand(D, N), rand(1, L, N), rand(1, L, N)
    selective_scan(x, delta, A, B, C, **extra, **(gathered if options else {}), backend="triton")
    one = {k: v[:, 0] if k == "z" else v for k, v in extra.items()}
    selective_step(torch.rand(1, D, N), x[:, 0], delta[:, 0], A, B[:, 0], C[:, 0], **one, backend="triton")
    taps = (rand(D, 4), rand(D), rand(1, D, 3), gathered["mask"]) if options else (rand(D, 1), None)
    causal_conv1d(x, *taps, backend="triton")
    token_scores(delta, *((rand(D), True, gathered["mask"], rand(D)) if options else ()), backend="triton")


def mamba2(L: int, H: int, P: int, N: int, options: bool) -> None:
    extra: dict[str, Any] = {}
    if options:
        extra = {"D": torch.rand(H, P), "z": torch.rand(1, L, H, P), "delta_bias": torch.rand(H)}
        extra |= {"threshold": torch.rand(H), "scale": torch.rand(1, H), "delta_limit": (0.0, 1.0)}
    gathered = {
        "mask": torch.ones(1, L).bool(),
        "index": torch.arange(L)[None],
        "initial_state": torch.rand(1, H, P, N),
    }
    x, delta, A, B = torch.rand(1, L, H, P), torch.rand(1, L, H), -torch.rand(H), torch.rand(1, L, 1, N)
    ssd_scan(x, delta, A, B, B, **extra, **(gathered if options else {}), backend="triton")
    one = {k: v[:, 0] if k == "z" else v for k, v in extra.items()}
    ssd_step(torch.rand(1, H, P, N), x[:, 0], delta[:, 0], A, B[:, 0], B[:, 0], **one, backend="triton")


def around(M: int) -> None:
    """What stands around a scan, M features."""
    x, weight = torch.rand(1, M), torch.rand(M)
    add_rms_norm(x, x, weight, 1e-5, backend="triton")
    gated_rms_norm(x, x, weight, 1e-5, backend="triton")
    inner_rms_norm(torch.rand(1, 3 * M), M, 1e-5, backend="triton")
    causal_conv1d_step(torch.rand(1, M, 1), x, torch.rand(M, 2), weight, backend="triton")


def overlapping(t: torch.Tensor) -> torch.Tensor:
    """The same shape with all strides 1."""
    return torch.rand(sum(t.shape)).as_strided(t.shape, (1,) * t.dim())


def main() -> None:
    driver.set_active(NoDevice())
    JITFunction.run = compile_only
    found = {}

    def case(name: str, call: Any, *arguments: Any) -> None:
        compiled.clear()
        call(*arguments)
        found[name] = list(compiled)

    for on in (True, False):
        kind = "all" if on else "bare"
        case(f"one channel, {kind}", mamba1, 7, 1, 4, on)
        case(f"one of everything, {kind}", mamba1, 1, 1, 1, on)
        case(f"one head of one channel, {kind}", mamba2, 1, 1, 1, 1, on)
    case("strides of 1", mamba1, 3, 5, 4, True, overlapping)
    case("one feature", around, 1)
    case("one head", mamba2, 7, 1, 16, 16, True)
    case("two chunks of one channel", mamba1, 256, 1, 4, False)
    grid = (torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 6, 7, 2.0**36)
    case("one value", histogram_triton, torch.zeros(1, 1), *grid)
    for L in (300, 256, 1, 2, 17, 512, 4096):
        case(f"{L} tokens", mamba1, L, 48, 16, True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
