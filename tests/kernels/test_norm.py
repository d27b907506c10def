"""The norms: every backend against float64."""

from __future__ import annotations

import pytest
import torch

from longscan.kernels import add_rms_norm, gated_rms_norm, inner_rms_norm, rms_norm

FLOAT, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 5, 7), (2, 3, 768)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_the_equation(backend, shape, dtype, relative_rms):
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(*shape[:-1], 2 * shape[-1], generator=g)
    x, weight = wide[..., : shape[-1]].to(dtype), torch.randn(shape[-1], generator=g)
    wanted = weight.double() * x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt()
    assert relative_rms(rms_norm(x, weight, 1e-5, torch.float32, backend=backend), wanted) < 1e-6
    short = rms_norm(x, weight, 1e-5, torch.bfloat16, backend=backend)
    assert short.dtype == torch.bfloat16 and relative_rms(short, wanted) < 4e-3


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize(("wide", "narrow"), [(FLOAT, BF16), (FLOAT, FLOAT), (BF16, BF16)])
def test_a_sum_and_its_norm(backend, wide, narrow, relative_rms):
    """The sum is what torch makes of it, rounded once; the norm is of the rounded sum."""
    g = torch.Generator().manual_seed(0)
    residual = torch.randn(2, 3, 40, generator=g).to(wide)[..., :20]
    x, weight = torch.randn(3, 2, 20, generator=g).to(narrow).transpose(0, 1), torch.randn(20, generator=g)
    before = residual.clone()
    y, total = add_rms_norm(residual, x, weight, 1e-5, torch.float32, backend=backend)
    assert total.dtype == wide and torch.equal(residual, before)
    error = 2**-7 if backend == "triton" and wide == torch.bfloat16 else 0  # the interpreter cuts where a GPU rounds
    torch.testing.assert_close(total, residual + x, rtol=error, atol=0)
    assert relative_rms(y, rms_norm(total.double(), weight, 1e-5)) < 1e-6
    assert add_rms_norm(residual, x, weight, 1e-5, backend=backend)[0].dtype == narrow


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_gated_norm(backend, dtype, groups, last, weighted, relative_rms):
    g = torch.Generator().manual_seed(0)
    both, weight = torch.randn(2, 5, 54, generator=g).to(dtype), torch.randn(24, generator=g)
    x, z = both[..., :24], both[..., 30:]
    gate = z.double() * z.double().sigmoid()
    wanted = x.double() * (1 if last else gate)
    if weighted:
        parts = wanted.unflatten(-1, (groups, -1))
        wanted = (parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * weight.double()
    wanted = wanted * (gate if last else 1)
    found = gated_rms_norm(x, z, weight if weighted else None, 1e-5, groups, last, backend=backend)
    assert found.dtype == dtype
    assert relative_rms(found, wanted) < (1e-6 if dtype == torch.float32 else 2**-7)


def test_groups_that_do_not_divide_are_refused():
    x = torch.ones(2, 6)
    for groups in (0, 4):
        with pytest.raises(ValueError, match=f"^groups must divide the 6 features, found {groups}$"):
            gated_rms_norm(x, x, None, 1e-5, groups)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "states"), [(1, 1), (5, 16), (24, 3)])
def test_the_inner_norms(backend, dtype, rank, states, relative_rms):
    wide = torch.randn(2, 3, rank + 2 * states + 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = wide[..., : rank + 2 * states]
    parts = x.double().split([rank, states, states], -1)
    wanted = torch.cat([part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() for part in parts], -1)
    found = inner_rms_norm(x, rank, 1e-5, backend=backend)
    assert found.dtype == dtype and relative_rms(found, wanted) < (1e-6 if dtype == torch.float32 else 2**-7)


def test_parts_that_are_not_there_are_refused():
    for rank in (0, 3, 6):
        with pytest.raises(ValueError, match=f"^rank must leave two equal parts of the 6 features, found {rank}$"):
            inner_rms_norm(torch.ones(2, 6), rank, 1e-5)
