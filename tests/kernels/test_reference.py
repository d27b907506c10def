"""The oracle itself, against the equations written out with numbers."""

from __future__ import annotations

import math

import pytest
import torch

from longscan.kernels import causal_conv1d, selective_scan, selective_step, token_scores

from .cases import double, scan_inputs


def test_scan_equals_the_equations_number_by_number():
    a = double(scan_inputs(2, 7, 3, 2, seed=1))
    y, last = selective_scan(**a, backend="reference")
    for b in range(2):
        for d in range(3):
            h = a["initial_state"][b, d].tolist()
            for k, t in enumerate(a["index"][b].tolist()):
                if t < 0:
                    assert y[b, k, d] == 0
                    continue
                raw = float(a["delta"][b, t, d] + a["delta_bias"][d])
                delta = math.log1p(math.exp(raw))
                kept = delta > float(a["threshold"][b, d]) and bool(a["mask"][b, t])
                delta = delta * float(a["scale"][d]) if kept else 0.0
                x, z = float(a["x"][b, t, d]), float(a["z"][b, t, d])
                for n in range(2):
                    h[n] = math.exp(delta * float(a["A"][d, n])) * h[n] + delta * x * float(a["B"][b, t, n])
                out = sum(h[n] * float(a["C"][b, t, n]) for n in range(2)) + float(a["D"][d]) * x
                assert float(y[b, k, d]) == pytest.approx(out * z / (1 + math.exp(-z)), rel=1e-10, abs=1e-12)
            assert last[b, d].tolist() == pytest.approx(h, rel=1e-10, abs=1e-12)


def test_threshold_is_strict_and_comes_before_the_scale():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    A = torch.tensor([[-1.0]], dtype=torch.float64)
    options = dict(delta_softplus=False, scale=torch.tensor([0.1]))
    kept, _ = selective_scan(one, one, A, one, one, threshold=torch.tensor([0.999]), **options)
    cut, _ = selective_scan(one, one, A, one, one, threshold=torch.tensor([1.0]), **options)
    assert kept.item() == pytest.approx(0.1) and cut.item() == 0


def test_step_is_one_token_of_the_scan():
    a = double(scan_inputs(2, 1, 5, 4))
    y, last = selective_scan(**{k: v for k, v in a.items() if k not in ("index", "mask")})
    state = a["initial_state"].clone()
    out = selective_step(
        state, a["x"][:, 0], a["delta"][:, 0], a["A"], a["B"][:, 0], a["C"][:, 0], a["D"], a["z"][:, 0],
        delta_bias=a["delta_bias"], threshold=a["threshold"], scale=a["scale"],
    )  # fmt: skip
    torch.testing.assert_close(out, y[:, 0])
    torch.testing.assert_close(state, last)


def test_conv_is_the_convolution_of_torch():
    x, w, b = torch.randn(2, 9, 3).double(), torch.randn(3, 4).double(), torch.randn(3).double()
    wanted = torch.nn.functional.conv1d(x.transpose(1, 2), w[:, None], b, padding=3, groups=3)[..., :9].transpose(1, 2)
    y, last = causal_conv1d(x, w, b)
    torch.testing.assert_close(y, torch.nn.functional.silu(wanted))
    torch.testing.assert_close(last, x[:, -3:].transpose(1, 2))


def test_scores_are_weighted_norms():
    delta, weight = torch.randn(1, 4, 6).double(), torch.rand(6)
    wanted = (weight.double() * torch.nn.functional.softplus(delta).square()).sum(-1).sqrt().float()
    torch.testing.assert_close(token_scores(delta, weight=weight), wanted)
    assert token_scores(delta, mask=torch.tensor([[True, False, True, True]]))[0, 1] == 0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("B", torch.zeros(1, 3, 3)), ("threshold", torch.zeros(7)), ("mask", torch.zeros(1, 3)), ("D", torch.zeros(1))],
)
def test_wrong_shapes_and_dtypes_are_named(name, wrong):
    a = {k: v for k, v in scan_inputs(1, 3, 5, 4).items() if k != "index"}
    with pytest.raises(ValueError, match=name):
        selective_scan(**{**a, name: wrong})


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend"):
        token_scores(torch.zeros(1, 1, 1), backend="magic")
