"""RMSNorm: every backend against float64."""

from __future__ import annotations

import pytest
import torch

from longscan.kernels import rms_norm


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
