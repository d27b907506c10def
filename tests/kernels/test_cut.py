"""raw_delta_cut: the filter on raw delta drops what the filter on softplus drops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from longscan.kernels import raw_delta_cut, selective_scan


def softplus(raw: torch.Tensor) -> torch.Tensor:
    """Correctly rounded: in float64, then to float32."""
    return torch.from_numpy(np.logaddexp(0.0, raw.double().numpy())).float()


def thresholds() -> torch.Tensor:
    """Every scale a g can have, both sides of powers of two, and of log 2, where the cut passes zero."""
    some = torch.exp(
        torch.empty(4000).uniform_(math.log(1e-37), math.log(80), generator=torch.Generator().manual_seed(0))
    )
    at = torch.tensor([1e-44, 1e-38, 2**-24, 0.25, 0.5, 1.0, 2.0, 16.0, 20.0, 64.0, 1e30, math.log(2)])
    around = [torch.nextafter(at, torch.tensor(end)) for end in (0.0, math.inf)]
    return torch.cat([some, at, *around])


def test_the_cut_is_the_last_raw_value_that_is_dropped():
    g = thresholds()
    cut = raw_delta_cut(g)
    assert (softplus(cut) <= g).all()
    assert (softplus(torch.nextafter(cut, torch.tensor(math.inf))) > g).all()


def test_a_token_whose_delta_equals_g_is_dropped():
    """As the filter's strict > does. log(expm1(g)), rounded to the nearest float32, keeps some of them."""
    raw = torch.linspace(-12, 25, 20001)
    g = softplus(raw)
    assert (raw <= raw_delta_cut(g)).all()
    assert not (raw <= torch.log(torch.expm1(g.double())).float()).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_scans_drop_the_same_tokens(backend):
    """But for those whose delta lies within the float32 error of the scan's softplus from g."""
    generator = torch.Generator().manual_seed(1)
    g = torch.exp(torch.empty(64).uniform_(math.log(1e-6), math.log(30), generator=generator))
    bias = torch.randn(64, generator=generator)
    cut = raw_delta_cut(g)
    steps = torch.cat([torch.arange(-40, 41) * 2.0**-23, torch.randn(800, generator=generator)])
    raw = cut + steps[:, None] * cut.abs() - bias  # (tokens, 64): around the cut, and far from it
    one = torch.ones(len(raw), 1, 1)
    x = torch.ones(len(raw), 1, 64)
    # One token each from an empty state, x = B = C = 1: y is delta as the recurrence saw it.
    y, _ = selective_scan(
        x, raw[:, None], -one[0].expand(64, 1), one, one, delta_bias=bias, threshold=g, backend=backend
    )
    dropped, here = y[:, 0] == 0, raw + bias <= cut
    near = (softplus(raw + bias).double() / g - 1).abs() < 1e-6
    assert torch.equal(dropped | near, here | near)
    assert near.any() and (dropped & ~near).any() and (~dropped & ~near).any()


def test_thresholds_that_drop_nothing_and_everything():
    raw = torch.tensor([-math.inf, -200.0, -87.0, 0.0, 1e30, math.inf, math.nan])
    cut = raw_delta_cut(torch.tensor([0.0, -1.0, math.inf]))
    assert cut.tolist() == [-math.inf, -math.inf, math.inf]
    assert (raw <= cut[0]).tolist() == [True] + 6 * [False]  # delta of -inf is 0 as it is
    assert (raw <= cut[2]).tolist() == 6 * [True] + [False]  # NaN is never dropped


@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_dtypes(shape, dtype):
    g = torch.rand(shape).to(dtype)
    cut = raw_delta_cut(g)
    assert cut.dtype == torch.float32 and cut.shape == shape
    assert torch.equal(cut, raw_delta_cut(g.float()))


def test_what_is_no_threshold_is_refused():
    with pytest.raises(ValueError, match="threshold holds NaN"):
        raw_delta_cut(torch.tensor([0.1, math.nan]))
    with pytest.raises(ValueError, match="threshold must be a float16"):
        raw_delta_cut(torch.tensor([1]))
