"""The matrix product of a few tokens on a CPU: as exact as torch's, vectors in the binary, torch's everywhere else."""

from __future__ import annotations

import platform
import re

import llvmlite.binding as llvm
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from longscan.kernels import linear
from longscan.kernels.linear import api, cpu, cpu_loops
from longscan.kernels.shared.cpu_math import FAST

from ..conftest import relative_rms

STORED = [torch.float32, torch.bfloat16]


def product(O, K, *rows, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=g).to(dtype) for shape in ((*rows, K), (O, K), (O,))]


@pytest.fixture
def fast(monkeypatch):
    """How often the loop ran."""
    calls = []
    monkeypatch.setattr(cpu, "linear", lambda *a, run=cpu.linear: calls.append(a) or run(*a))
    return calls


@pytest.mark.parametrize("dtype", STORED)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_shape_is_as_exact_as_torch(dtype, data):
    """Around the blocks of 64 and of 16 inputs; the sums' error is that of a few thousand products."""
    O, K = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 2, 15, 16, 17, 48, 63, 64, 65, 80, 130, 200]))
    rows = data.draw(st.sampled_from([(1,), (4,), (2, 2), (1, 1, 3)]))
    x, weight, bias = product(O, K, *rows, dtype=dtype, seed=data.draw(st.integers(0, 99)))
    bias = bias if data.draw(st.booleans()) else None
    wanted = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    found = linear(x, weight, bias)
    assert found.dtype == dtype and found.shape == wanted.shape
    torch.testing.assert_close(
        found.double(),
        wanted,
        **({"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-2}),
    )


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("O, K", [(768, 1536), (1536, 48), (300, 5120)])
def test_the_error_is_no_larger_than_torchs(dtype, rows, O, K):
    x, weight, _ = product(O, K, rows, dtype=dtype)
    wanted = F.linear(x.double(), weight.double())
    assert relative_rms(linear(x, weight), wanted) <= 1.02 * relative_rms(F.linear(x, weight), wanted)


@pytest.mark.parametrize("dtype", STORED)
def test_rows_do_not_touch_one_another(dtype):
    x, weight, _ = product(40, 130, 4, dtype=dtype)
    assert torch.equal(linear(x, weight), torch.cat([linear(row[None], weight) for row in x]))


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 70, 129])
def test_what_is_not_finite_stays_so(dtype, value, place):
    x, weight, _ = product(3, 130, 2, dtype=dtype)
    weight[1, place] = value
    found, wanted = linear(x, weight), F.linear(x, weight)
    assert torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.isinf(), wanted.isinf())
    assert found[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_the_loop_runs_where_it_is_faster(fast, dtype, backend):
    x, weight, bias = product(8, 64, 4, dtype=dtype)
    linear(x, weight, bias, backend=backend)
    linear(x[:, None], weight, backend=backend)
    assert len(fast) == 2


def test_everything_else_is_torchs(fast):
    x, weight, bias = product(8, 64, 4)
    others = [
        (product(8, 64, 5)[0], weight, bias),
        (x.double(), weight.double(), bias.double()),
        (x.half(), weight.half(), bias.half()),
        (x, weight.T.contiguous().T, bias),
        (x[:0], weight, bias),
        (x, weight.clone().requires_grad_(), bias),
    ]
    for other in others:
        assert torch.equal(linear(*other), F.linear(*other))
    assert torch.equal(linear(x, weight, bias, backend="reference"), F.linear(x, weight, bias))
    assert not fast
    linear(x, weight.clone().requires_grad_()).sum().backward()
    for wrong in [(x, weight[:, 1:], bias), (x, weight, bias[1:]), (x, weight.double(), bias)]:
        with pytest.raises(RuntimeError):
            linear(*wrong)
    with pytest.raises(ValueError, match=r"^unknown backend 'cuda'; use auto"):
        linear(x, weight, backend="cuda")


def test_without_numba_it_is_torchs(fast, monkeypatch):
    monkeypatch.setattr(api, "has_numba", lambda: False)
    x, weight, bias = product(8, 64, 1)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias)) and not fast


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not llvm.get_host_cpu_features().get("fma"), reason="reads x86's instructions"
)
@pytest.mark.parametrize("stored", ["f4", "i2"])
def test_the_binary_multiplies_vectors_and_reads_ahead(stored):
    """The main loop: whole vectors, as wide as the machine's, four sums at once, and the weight's lines asked for."""
    signature = f"void(f4[:,::1], {stored}[:,::1], f4[::1], f4[:,::1])"
    loop = njit(signature, parallel=True, fastmath=FAST, error_model="numpy")(cpu_loops.product.py_func)
    (text,) = loop.inspect_asm().values()
    blocks = [block for block in re.split(r"^\.LBB\S+:$", text, flags=re.M) if "prefetch" in block]
    wide = "zmm" if llvm.get_host_cpu_features().get("avx512f") else "ymm"
    assert blocks
    for block in blocks:
        assert len(re.findall(rf"vfmadd\d+ps\s.*{wide}", block)) >= 4
        assert not re.search(r"vfmadd\d+ss|vmulss|vaddss", block)
