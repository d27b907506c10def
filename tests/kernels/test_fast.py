"""The fast backends against the float64 oracle: odd shapes, every option, strided views, poisoned outputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longscan.kernels import causal_conv1d, selective_scan, selective_step, token_scores
from longscan.kernels.scan import triton as scan_triton
from longscan.kernels.scan.triton_plan import SCAN_CONFIGS
from longscan.kernels.shared.arguments import Scan

from .cases import OPTIONS, double, load_benchmark, scan_inputs, without

FAST = ("cpu", "triton")
# Around every block: 4 steps unrolled, 32 threads of one or two channels, 16 states a thread, states that are padded.
SHAPES = [(1, 1, 5, 8), (2, 3, 31, 3), (1, 4, 32, 16), (2, 5, 33, 16), (1, 8, 64, 32), (1, 9, 66, 16)]
LONG = [(2, 500, 17, 16), (1, 4096, 8, 16)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """torch.empty and torch.empty_like give NaN, so that an output left unwritten shows; -> what they returned."""
    given = []

    def poison(make):
        def poisoned(*shape, **options):
            t = make(*shape, **options)
            given.append(t.fill_(torch.nan) if t.is_floating_point() else t)
            return t

        return poisoned

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    return given


def test_the_poison_reaches_every_output(poisoned):
    """What the kernels return began as NaN: else the tests below could pass on memory that happens to be right."""
    backend = "triton"
    a = without(scan_inputs(1, 3, 5, 4), "index")

    def began_as_nan(t):
        return any(t.data_ptr() == p.data_ptr() for p in poisoned)

    assert all(map(began_as_nan, selective_scan(**a, backend=backend)))
    assert began_as_nan(causal_conv1d(a["x"], torch.ones(5, 4), None, backend=backend)[0])
    assert began_as_nan(token_scores(a["delta"], backend=backend))
    one = [a[k][:, 0] if k in ("x", "delta", "B", "C", "z") else a[k] for k in ("x", "delta", "A", "B", "C", "D", "z")]
    assert began_as_nan(selective_step(a["initial_state"], *one, backend=backend))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dropped", [(), ("index",), OPTIONS], ids=["all", "no index", "none"])
def test_scan(backend, shape, dropped, relative_rms):
    a = without(scan_inputs(*shape), *dropped)
    y, last = selective_scan(**a, backend=backend)
    wanted, wanted_last = selective_scan(**double(a), backend="reference")
    assert y.dtype == torch.float32 and last.dtype == torch.float32
    assert relative_rms(y, wanted) < 1e-5
    assert relative_rms(last, wanted_last) < 1e-5


@pytest.mark.parametrize("shape", LONG, ids=str)
def test_scan_of_many_tokens(shape, relative_rms):
    """On the CPU backend; the interpreter takes 10 ms a step, so the Triton one does this in tests/gpu."""
    a = without(scan_inputs(*shape), "index")
    y, last = selective_scan(**a, backend="cpu")
    wanted, wanted_last = selective_scan(**double(a), backend="reference")
    assert relative_rms(y, wanted) < 1e-5 and relative_rms(last, wanted_last) < 1e-5


def test_scan_of_200_thousand_tokens(relative_rms):
    """Slow channels lose digits whatever one does: at most three times the error of a plain float32 loop over time."""
    a = without(scan_inputs(1, 200_000, 3, 4), "index", "mask", "scale", "initial_state", "threshold")
    a["A"] *= 1e-3
    wanted = load_benchmark("oracle").scan_oracle(**a)
    with torch.inference_mode():
        plain, _ = selective_scan(**a, backend="reference")
    y, _ = selective_scan(**a, backend="cpu")
    assert relative_rms(y, wanted) <= 3 * relative_rms(plain, wanted)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_inputs(backend, dtype, bound, relative_rms):
    if backend == "triton" and dtype == torch.bfloat16 and not torch.cuda.is_available():
        bound = 1.5e-2  # the interpreter truncates where the GPU rounds to nearest
    a = scan_inputs(1, 30, 20, 16, dtype=dtype)
    y, last = selective_scan(**a, backend=backend)
    wanted, wanted_last = selective_scan(**double(a), backend="reference")
    assert y.dtype == dtype and last.dtype == torch.float32
    assert relative_rms(y, wanted) < bound and relative_rms(last, wanted_last) < 1e-5


@pytest.mark.parametrize("backend", FAST)
@given(seed=st.integers(0, 2**16), L=st.integers(2, 12), D=st.integers(1, 40), cut=st.integers(1, 11))
@settings(max_examples=8, deadline=None)
def test_properties(backend, seed, L, D, cut):
    a = without(scan_inputs(1, L, D, 4, seed), "scale", "mask")
    plain = without(a, "index", "threshold")
    close = dict(rtol=1e-5, atol=1e-5)

    # a threshold is the same as masking delta
    y, last = selective_scan(**plain, threshold=a["threshold"], backend=backend)
    delta = torch.nn.functional.softplus(a["delta"] + a["delta_bias"])
    masked = {**without(plain, "delta_bias"), "delta": torch.where(delta > a["threshold"][:, None], delta, 0.0)}
    y2, last2 = selective_scan(**masked, delta_softplus=False, backend=backend)
    torch.testing.assert_close((y, last), (y2, last2), **close)

    # an index is the same as gathering first
    index = torch.arange(0, L, 2)
    y, last = selective_scan(**plain, index=index[None], backend=backend)
    gathered = {k: v[:, index] if k in ("x", "delta", "B", "C", "z") else v for k, v in plain.items()}
    y2, last2 = selective_scan(**gathered, backend=backend)
    torch.testing.assert_close((y, last), (y2, last2), **close)

    # two chunks with carried state are one
    cut = min(cut, L - 1)
    whole, last = selective_scan(**plain, backend=backend)
    head, tail = ({k: v[:, part] if k in ("x", "delta", "B", "C", "z") else v for k, v in plain.items()}
                  for part in (slice(cut), slice(cut, None)))  # fmt: skip
    first, state = selective_scan(**head, backend=backend)
    second, last2 = selective_scan(**{**tail, "initial_state": state}, backend=backend)
    torch.testing.assert_close((whole, last), (torch.cat([first, second], 1), last2), **close)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("L", [0, 1, 2, 3, 63, 64, 65, 70])
@pytest.mark.parametrize("options", [True, False])
def test_conv(backend, L, options):
    x = torch.randn(2, L, 80)[:, :, :40]
    w, b, before, mask = torch.randn(40, 4), torch.randn(40), torch.randn(2, 40, 3), torch.rand(2, L) > 0.3
    given = (b, before, mask) if options else (None, None, None)
    found = causal_conv1d(x, w, *given, backend=backend)
    wanted = causal_conv1d(x, w, *given, backend="reference")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("options", [True, False])
def test_token_scores(backend, options):
    delta = torch.randn(2, 37, 150)
    given = (torch.randn(150), True, torch.rand(2, 37) > 0.3, torch.rand(150)) if options else (None, False, None, None)
    found = token_scores(delta, *given, backend=backend)
    wanted = token_scores(delta.double(), *given, backend="reference")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", FAST)
def test_step(backend):
    a = without(scan_inputs(2, 1, 37, 16), "index", "mask")
    state, oracle = a["initial_state"].clone(), a["initial_state"].double()
    names = ("x", "delta", "A", "B", "C", "D", "z")
    at = {k: v[:, 0] if k in ("x", "delta", "B", "C", "z") else v for k, v in a.items()}
    options = {k: a[k] for k in ("delta_bias", "threshold", "scale")}
    y = selective_step(state, *(at[k] for k in names), **options, backend=backend)
    wide = double(at)
    wanted = selective_step(oracle, *(wide[k] for k in names), **options, backend="reference")
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state.double(), oracle, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", FAST)
def test_nothing_to_read_leaves_the_state(backend):
    a = without(scan_inputs(2, 0, 5, 4), "index")
    y, last = selective_scan(**a, backend=backend)
    assert y.shape == (2, 0, 5)
    torch.testing.assert_close(last, a["initial_state"])


@pytest.mark.parametrize("dropped", [("index",), ("initial_state",)], ids=["no index", "no initial state"])
@pytest.mark.parametrize("chunks", [2, 5])
def test_any_number_of_time_chunks(chunks, dropped, relative_rms):
    a = without(scan_inputs(2, 23, 9, 8), *dropped)
    ordered = [a.get(k) for k in ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    rest = [a.get(k) for k in ("threshold", "scale", "index", "mask", "initial_state")]
    y, last = scan_triton.selective_scan(Scan(*ordered, True, *rest), chunks=chunks)
    wanted, wanted_last = selective_scan(**double(a), backend="reference")
    assert relative_rms(y, wanted) < 1e-5 and relative_rms(last, wanted_last) < 1e-5


@pytest.mark.parametrize("config", SCAN_CONFIGS, ids=str)
def test_every_configuration(config, relative_rms):
    a = without(scan_inputs(1, 6, 66, 16), "index")
    ordered = [a.get(k) for k in ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    rest = [a.get(k) for k in ("threshold", "scale", "index", "mask", "initial_state")]
    y, last = scan_triton.selective_scan(Scan(*ordered, True, *rest), chunks=2, config=config)
    wanted, wanted_last = selective_scan(**double(a), backend="reference")
    assert relative_rms(y, wanted) < 1e-5 and relative_rms(last, wanted_last) < 1e-5


@pytest.mark.parametrize("backend", FAST)
def test_offsets_beyond_32_bits(backend):
    """Rows 2^31 elements apart: any 32-bit product of row and stride would read elsewhere (or crash).

    The 8 GiB between them are never touched, so the system never provides them.
    """
    stride = 2**31 + 8
    base = torch.tensor([]).set_(torch.UntypedStorage(4 * (stride + 64)))
    x = base.as_strided((2, 2, 4), (stride, 4, 1))
    values = torch.arange(16.0).view(2, 2, 4) + 1
    x.copy_(values)
    found = causal_conv1d(x, torch.ones(4, 4), None, backend=backend)
    torch.testing.assert_close(found, causal_conv1d(values, torch.ones(4, 4), None, backend="reference"))
    found = token_scores(x, delta_softplus=False, backend=backend)
    torch.testing.assert_close(found, token_scores(values, delta_softplus=False, backend="reference"))
    small, A, options = torch.ones(2, 2, 4), -torch.ones(4, 4), dict(delta_softplus=False, backend=backend)
    for far in ("x", "delta", "B", "C", "z"):
        a = dict.fromkeys(("x", "delta", "B", "C", "z"), small)
        found = selective_scan(**{**a, far: x}, A=A, **options)
        torch.testing.assert_close(found, selective_scan(**{**a, far: values}, A=A, **options))
        a = {k: v[:, 0] for k, v in a.items()}
        state, wanted_state = torch.ones(2, 4, 4), torch.ones(2, 4, 4)
        found = selective_step(state, **{**a, far: x[:, 0]}, A=A, **options)
        wanted = selective_step(wanted_state, **{**a, far: values[:, 0]}, A=A, **options)
        torch.testing.assert_close((found, state), (wanted, wanted_state))


@pytest.mark.parametrize("backend", FAST)
def test_time_strides_beyond_32_bits(backend):
    """Steps 2^30 elements apart: the third lies beyond 2^31, and t times the stride must not wrap."""
    stride = 2**30 + 8
    base = torch.tensor([]).set_(torch.UntypedStorage(4 * (2 * stride + 64)))
    x = base.as_strided((1, 3, 4), (0, stride, 1))
    values = torch.arange(12.0).view(1, 3, 4) / 10
    x.copy_(values)
    given = (torch.ones(4, 4), None)
    torch.testing.assert_close(
        causal_conv1d(x, *given, backend=backend), causal_conv1d(values, *given, backend="reference")
    )
    torch.testing.assert_close(token_scores(x, backend=backend), token_scores(values, backend="reference"))
    small, A = torch.ones(1, 3, 4), -torch.ones(4, 4)
    for index in (None, torch.tensor([[0, 2]])):
        found = selective_scan(x, x, A, small, small, z=x, index=index, backend=backend)
        wanted = selective_scan(values, values, A, small, small, z=values, index=index, backend="reference")
        torch.testing.assert_close(found, wanted)
