"""The Triton kernels on a real GPU against the float64 oracle."""

from __future__ import annotations

import pytest
import torch

from longscan.kernels import causal_conv1d, selective_scan, selective_step, ssd_scan, ssd_step, token_scores

from ..kernels.cases import double, scan_inputs, ssd_inputs, without

pytestmark = pytest.mark.gpu


def cuda(inputs):
    return {k: v.cuda() for k, v in inputs.items()}


@pytest.mark.parametrize("shape", [(1, 1, 5, 8), (2, 63, 40, 16), (1, 4096, 96, 16), (8, 300, 1536, 16)], ids=str)
@pytest.mark.parametrize("dropped", [(), ("index",)], ids=["all", "no index"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_scan(shape, dropped, dtype, bound, relative_rms):
    a = without(cuda(scan_inputs(*shape, dtype=dtype)), *dropped)
    y, last = selective_scan(**a, backend="triton")
    wanted, wanted_last = selective_scan(**double(a), backend="reference")
    assert relative_rms(y, wanted) < bound and relative_rms(last, wanted_last) < 1e-5


def test_conv_scores_and_step(relative_rms):
    a = cuda(without(scan_inputs(2, 1000, 200, 16), "index"))
    w, b = torch.randn(200, 4, device="cuda"), torch.randn(200, device="cuda")
    found, last = causal_conv1d(a["x"], w, b, None, a["mask"], backend="triton")
    wanted, wanted_last = causal_conv1d(a["x"], w, b, None, a["mask"], backend="reference")
    assert relative_rms(found, wanted) < 1e-5 and torch.equal(last, wanted_last)
    scores = [token_scores(a["delta"], a["delta_bias"], True, a["mask"], backend=k) for k in ("triton", "reference")]
    assert relative_rms(*scores) < 1e-5
    state, oracle = a["initial_state"].clone(), a["initial_state"].clone()
    one = [a[k][:, 0] if k in ("x", "delta", "B", "C", "z") else a[k] for k in ("x", "delta", "A", "B", "C", "D", "z")]
    pairs = ((state, "triton"), (oracle, "reference"))
    ys = [selective_step(s, *one, delta_bias=a["delta_bias"], backend=k) for s, k in pairs]
    assert relative_rms(*ys) < 1e-5 and relative_rms(state, oracle) < 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 2, 5, 1, 3), (2, 4096, 8, 64, 1, 128), (2, 777, 4, 64, 2, 256)], ids=str)
@pytest.mark.parametrize("dropped", [(), ("index",)], ids=["all", "no index"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_ssd(shape, dropped, dtype, bound, relative_rms):
    a = without(cuda(ssd_inputs(*shape, dtype=dtype)), *dropped)
    y, last = ssd_scan(**a, backend="triton")
    wanted, wanted_last = ssd_scan(**double(a), backend="reference")
    assert relative_rms(y, wanted) < bound and relative_rms(last, wanted_last) < bound
    state, oracle = a["initial_state"].clone(), a["initial_state"].clone()
    one = [a[k][:, 0] if k in ("x", "delta", "B", "C", "z") else a[k] for k in ("x", "delta", "A", "B", "C", "D", "z")]
    pairs = ((state, "triton"), (oracle, "reference"))
    ys = [ssd_step(s, *one, delta_bias=a["delta_bias"], backend=k) for s, k in pairs]
    assert relative_rms(*ys) < bound and relative_rms(state, oracle) < 1e-5


def test_models_agree_across_devices(relative_rms):
    from longscan.runtime import load

    ids = torch.randint(0, 256, (2, 700))
    wanted = load("demo", device="cpu").prefill(ids, logits_to_keep=0).logits
    found = load("demo", device="cuda", dtype="float32").prefill(ids, logits_to_keep=0).logits
    assert relative_rms(found.cpu(), wanted) < 1e-4
