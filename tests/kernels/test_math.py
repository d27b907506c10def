"""The scalar functions of the Triton kernels against float64."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from longscan.kernels.shared.triton_math import exp2_on_fma, silu, softplus


@triton.jit
def _apply(x, y, WHICH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    v = tl.load(x + at)
    if WHICH == 0:
        v = softplus(v)
    elif WHICH == 1:
        v = silu(v)
    else:
        v = exp2_on_fma(v)
    tl.store(y + at, v)


@pytest.mark.parametrize(
    ("which", "low", "high", "oracle", "bound"),
    [
        (0, -80, 80, torch.nn.functional.softplus, 4e-6),  # e^-x carries the rounding of x log2(e)
        (0, -4, 4, torch.nn.functional.softplus, 6e-7),
        (1, -40, 40, torch.nn.functional.silu, 4e-6),
        (1, -4, 4, torch.nn.functional.silu, 6e-7),
        (2, -120, 0, torch.exp2, 2e-7),
        (2, -1, 0, torch.exp2, 2e-7),
    ],
    ids=["softplus wide", "softplus near", "silu wide", "silu near", "exp2 wide", "exp2 near"],
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


def test_a_masked_token_leaves_the_state_exactly():
    """2^0 is exactly 1 on either unit: delta = 0 must not touch the state."""
    x = torch.zeros(16, device="cuda" if torch.cuda.is_available() else "cpu")
    y = torch.empty_like(x)
    _apply[(1,)](x, y, WHICH=2, BLOCK=16)
    assert torch.equal(y, torch.ones_like(y))
