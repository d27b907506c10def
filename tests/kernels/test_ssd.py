"""Mamba-2's scan: the oracle against its equations, the fast backends against the oracle, every option, odd shapes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longscan.kernels import ssd_scan, ssd_step

from .cases import OPTIONS, double, ssd_inputs, without

FAST = ("cpu", "triton")
# B, L, H, P, G, N: one token; sizes no matrix product likes; more than one chunk of either backend; many states
SHAPES = [(1, 20, 1, 3, 1, 150), (1, 1, 2, 5, 1, 3), (2, 37, 6, 16, 3, 8), (1, 65, 3, 33, 1, 20), (1, 260, 2, 8, 2, 16)]
IN_TIME = ("x", "delta", "B", "C", "z")
LIMIT = (0.02, 1.5)


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """torch.empty gives NaN, so that an output left unwritten shows."""
    empty = torch.empty

    def poisoned(*shape, **options):
        t = empty(*shape, **options)
        return t.fill_(torch.nan) if t.is_floating_point() else t

    monkeypatch.setattr(torch, "empty", poisoned)


def test_oracle_equals_the_equations_number_by_number():
    a = double(ssd_inputs(2, 7, 4, 3, 2, 2, seed=1))
    y, last = ssd_scan(**a, delta_limit=LIMIT, backend="reference")
    for b in range(2):
        for head in range(4):
            group = head // 2
            h = [row[:] for row in a["initial_state"][b, head].tolist()]
            for k, t in enumerate(a["index"][b].tolist()):
                if t < 0:
                    assert (y[b, k, head] == 0).all()
                    continue
                delta = math.log1p(math.exp(float(a["delta"][b, t, head] + a["delta_bias"][head])))
                delta = min(max(delta, LIMIT[0]), LIMIT[1])
                kept = delta > float(a["threshold"][b, head]) and bool(a["mask"][b, t])
                delta = delta * float(a["scale"][head]) if kept else 0.0
                decay = math.exp(delta * float(a["A"][head]))
                B, C = a["B"][b, t, group].tolist(), a["C"][b, t, group].tolist()
                for p in range(3):
                    x, z = float(a["x"][b, t, head, p]), float(a["z"][b, t, head, p])
                    h[p] = [decay * old + delta * x * B[n] for n, old in enumerate(h[p])]
                    out = sum(h[p][n] * C[n] for n in range(2)) + float(a["D"][head, p]) * x
                    assert float(y[b, k, head, p]) == pytest.approx(out * z / (1 + math.exp(-z)), rel=1e-10, abs=1e-12)
            found = [value for row in h for value in row]
            assert last[b, head].flatten().tolist() == pytest.approx(found, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dropped", [(), ("index",), OPTIONS], ids=["all", "no index", "none"])
def test_scan(backend, shape, dropped, relative_rms):
    a = without(ssd_inputs(*shape), *dropped)
    limit = (0.0, math.inf) if dropped == OPTIONS else LIMIT
    y, last = ssd_scan(**a, delta_limit=limit, backend=backend)
    wanted, wanted_last = ssd_scan(**double(a), delta_limit=limit, backend="reference")
    assert y.dtype == torch.float32 and last.dtype == torch.float32
    assert relative_rms(y, wanted) < 1e-5
    assert relative_rms(last, wanted_last) < 1e-5


@pytest.mark.parametrize("backend", FAST)
def test_one_skip_a_head(backend, relative_rms):
    a = ssd_inputs(1, 20, 3, 8, 1, 8)
    a["D"] = a["D"][:, 0]
    y, _ = ssd_scan(**a, backend=backend)
    assert relative_rms(y, ssd_scan(**double(a))[0]) < 1e-5


# The interpreter multiplies the bits of bfloat16: tests/gpu has that case.
@pytest.mark.parametrize(
    ("backend", "dtype", "bound"),
    [("cpu", torch.float16, 2e-3), ("cpu", torch.bfloat16, 1e-2), ("triton", torch.float16, 2e-3)],
)
def test_half_precision_inputs(backend, dtype, bound, relative_rms):
    a = ssd_inputs(1, 150, 4, 16, 2, 16, dtype=dtype)
    y, last = ssd_scan(**a, backend=backend)
    wanted, wanted_last = ssd_scan(**double(a), backend="reference")
    assert y.dtype == dtype and last.dtype == torch.float32
    assert relative_rms(y, wanted) < bound and relative_rms(last, wanted_last) < bound


@pytest.mark.parametrize("backend", FAST)
def test_small_decays_survive_large_ones(backend, relative_rms):
    """Tokens that wipe the state beside tokens that hardly touch it: sums of log decays lose digits, ours must not."""
    a = without(ssd_inputs(1, 256, 2, 8, 1, 8), "index", "mask", "threshold", "scale")
    a["delta"] = torch.where(torch.arange(256)[None, :, None] % 9 == 0, 40.0, -4.0).expand(1, 256, 2)
    a["A"] = torch.tensor([-300.0, -17.0])
    y, last = ssd_scan(**a, backend=backend)
    wanted, wanted_last = ssd_scan(**double(a), backend="reference")
    assert relative_rms(y, wanted) < 1e-5 and relative_rms(last, wanted_last) < 1e-5


@pytest.mark.parametrize("backend", FAST)
@given(seed=st.integers(0, 2**16), L=st.integers(2, 90), H=st.sampled_from([2, 4]), cut=st.integers(1, 89))
@settings(max_examples=12, deadline=None)
def test_properties(backend, seed, L, H, cut):
    a = without(ssd_inputs(1, L, H, 4, 2, 4, seed), "scale", "mask")
    plain = without(a, "index", "threshold")
    close = dict(rtol=1e-4, atol=2e-5)

    # a threshold is the same as masking delta
    y, last = ssd_scan(**plain, threshold=a["threshold"], backend=backend)
    delta = torch.nn.functional.softplus(a["delta"] + a["delta_bias"])
    masked = {**without(plain, "delta_bias"), "delta": torch.where(delta > a["threshold"][:, None], delta, 0.0)}
    y2, last2 = ssd_scan(**masked, delta_softplus=False, backend=backend)
    torch.testing.assert_close((y, last), (y2, last2), **close)

    # an index is the same as gathering first
    index = torch.arange(0, L, 2)
    y, last = ssd_scan(**plain, index=index[None], backend=backend)
    gathered = {k: v[:, index] if k in IN_TIME else v for k, v in plain.items()}
    torch.testing.assert_close((y, last), ssd_scan(**gathered, backend=backend), **close)

    # two chunks with carried state are one
    cut = min(cut, L - 1)
    whole, last = ssd_scan(**plain, backend=backend)
    head, tail = ({k: v[:, part] if k in IN_TIME else v for k, v in plain.items()}
                  for part in (slice(cut), slice(cut, None)))  # fmt: skip
    first, state = ssd_scan(**head, backend=backend)
    second, last2 = ssd_scan(**{**tail, "initial_state": state}, backend=backend)
    torch.testing.assert_close((whole, last), (torch.cat([first, second], 1), last2), **close)


@pytest.mark.parametrize("backend", FAST)
def test_skipped_tokens_leave_the_state_to_the_bit(backend):
    a = without(ssd_inputs(2, 70, 4, 8, 2, 8), "index", "scale", "threshold", "mask")
    _, last = ssd_scan(**a, threshold=torch.full((4,), 1e9), delta_limit=LIMIT, backend=backend)
    assert torch.equal(last, a["initial_state"])


@pytest.mark.parametrize("backend", ("reference", *FAST))
@pytest.mark.parametrize("wide", [True, False])
def test_step_is_one_token_of_the_scan(backend, wide):
    a = without(ssd_inputs(2, 1, 6, 20, 3, 17), "index", "mask")
    if not wide:
        a["D"] = a["D"][:, 0]
    if backend == "reference":
        a = double(a)
    y, last = ssd_scan(**double(a), delta_limit=LIMIT)
    state = a["initial_state"].clone()
    one = [a[k][:, 0] if k in IN_TIME else a[k] for k in ("x", "delta", "A", "B", "C", "D", "z")]
    options = {k: a[k] for k in ("delta_bias", "threshold", "scale")}
    out = ssd_step(state, *one, **options, delta_limit=LIMIT, backend=backend)
    torch.testing.assert_close(out.double(), y[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.double(), last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
def test_nothing_to_read_leaves_the_state(backend):
    a = without(ssd_inputs(2, 0, 4, 3, 2, 4), "index")
    y, last = ssd_scan(**a, backend=backend)
    assert y.shape == (2, 0, 4, 3)
    torch.testing.assert_close(last, a["initial_state"])
    last.zero_()  # a copy: the given state is the caller's
    assert a["initial_state"].any()


@pytest.mark.parametrize("backend", FAST)
def test_offsets_beyond_32_bits(backend):
    """Rows 2^31 elements apart: any 32-bit product of row and stride would read elsewhere (or crash)."""
    stride = 2**31 + 8
    base = torch.tensor([]).set_(torch.UntypedStorage(4 * (stride + 64)))
    values = torch.arange(16.0).view(2, 2, 1, 4) / 8
    far = base.as_strided((2, 2, 1, 4), (stride, 4, 4, 1))
    far.copy_(values)
    delta, A = torch.ones(2, 2, 1), -torch.ones(1)
    options = dict(delta_softplus=False, backend=backend)
    for given_ in ((far, values, values), (values, far, values), (values, values, far)):
        x, B, C = given_
        found = ssd_scan(x, delta, A, B, C, **options)
        torch.testing.assert_close(found, ssd_scan(values, delta, A, values, values, **options))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("B", torch.zeros(1, 3, 3, 2)),
        ("C", torch.zeros(1, 3, 2, 5)),
        ("A", torch.zeros(4, 2)),
        ("threshold", torch.zeros(7)),
        ("mask", torch.zeros(1, 3)),
        ("D", torch.zeros(3)),
        ("index", torch.zeros(1, 3)),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(name, wrong):
    a = without(ssd_inputs(1, 3, 4, 5, 2, 2), "index")
    with pytest.raises(ValueError, match=name):
        ssd_scan(**{**a, name: wrong})


def test_a_default_dtype_of_others_changes_nothing():
    """transformers sets torch's while it loads a model, for every thread."""
    a = ssd_inputs(1, 70, 4, 8, 1, 8, seed=3)
    wanted, state = ssd_scan(**a, backend="cpu")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found, after = ssd_scan(**a, backend="cpu")
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found, wanted) and torch.equal(after, state)
