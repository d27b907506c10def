"""The scalar functions of the Triton kernels against float64."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from longscan.kernels.shared.triton_math import silu, softplus


@triton.jit
def _apply(x, y, WHICH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    v = tl.load(x + at)
    if WHICH == 0:
        v = softplus(v)
    else:
        v = silu(v)
    tl.store(y + at, v)


@pytest.mark.parametrize(
    ("which", "low", "high", "oracle", "bound"),
    [
        (0, -80, 80, torch.nn.functional.softplus, 4e-6),  # e^-x carries the rounding of x log2(e)
        (0, -4, 4, torch.nn.functional.softplus, 6e-7),
        (1, -40, 40, torch.nn.functional.silu, 4e-6),
        (1, -4, 4, torch.nn.functional.silu, 6e-7),
    ],
    ids=["softplus wide", "softplus near", "silu wide", "silu near"],
)
def test_relative_error(which, low, high, oracle, bound):
    x = torch.linspace(low, high, 2**15)
    if torch.cuda.is_available():
        x = x.cuda()
    y = torch.empty_like(x)
    _apply[(1,)](x, y, WHICH=which, BLOCK=2**15)
    wanted = oracle(x.double(), threshold=100) if which == 0 else oracle(x.double())
    worst = ((y.double() - wanted).abs() / wanted.abs().clamp(min=1e-300)).max().item()
    print(f"largest relative error {worst:.1e}")
    assert worst <= bound
