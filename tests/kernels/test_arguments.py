"""What is refused, and what every backend must answer alike: NaN, infinities, strides, empty and smallest shapes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longscan.kernels import (
    add_rms_norm,
    causal_conv1d,
    causal_conv1d_step,
    gated_rms_norm,
    inner_rms_norm,
    rms_norm,
    selective_scan,
    selective_step,
    ssd_scan,
    ssd_step,
    token_scores,
)

from .cases import scan_inputs, ssd_inputs, without

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of arithmetic with NaN
FAST = ("cpu", "triton")
IN_TIME = ("x", "delta", "B", "C", "z")
INF, NAN = math.inf, math.nan


def of_step(a):
    """A scan's arguments of one token as a step's."""
    state = a["initial_state"].clone()
    rest = without(a, "index", "mask", "initial_state")
    return {"state": state, **{k: v[:, 0] if k in IN_TIME else v for k, v in rest.items()}}


def conv_inputs(B, L, D, W, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*s, generator=g) for s in ((B, L, D), (D, W), (D,)))
    before, mask = torch.randn(B, D, W - 1, generator=g), torch.rand(B, L, generator=g) > 0.3
    return {"x": x, "weight": weight, "bias": bias, "initial_state": before, "mask": mask}


def conv_step_inputs(B, D, W, seed=0):
    a = conv_inputs(B, 1, D, W, seed)
    return {"state": a["initial_state"], "x": a["x"][:, 0], "weight": a["weight"], "bias": a["bias"]}


def norm_inputs(B, L, M, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(B, L, M, generator=g), "weight": torch.rand(M, generator=g) + 0.5}


def added_inputs(B, L, M, seed=0):
    a = norm_inputs(B, L, M, seed)
    return {"residual": norm_inputs(B, L, M, seed + 100)["x"], **a}


def gated_inputs(B, L, M, seed=0):
    a = norm_inputs(B, L, M, seed)
    return {"x": a["x"], "z": norm_inputs(B, L, M, seed + 100)["x"], "weight": a["weight"]}


def inner_inputs(B, L, R, N, seed=0):
    return {"x": norm_inputs(B, L, R + 2 * N, seed)["x"]}


def score_inputs(B, L, D, seed=0):
    a = scan_inputs(B, L, D, 1, seed)
    return {"delta": a["delta"], "delta_bias": a["delta_bias"], "mask": a["mask"], "weight": a["scale"]}


def every_function(L=5, seed=0, N=3):
    """Name, function and all of its arguments, small."""
    scan, ssd = scan_inputs(2, L, 5, N, seed), ssd_inputs(2, L, 4, 3, 2, N, seed)
    return {
        "selective_scan": (selective_scan, scan),
        "selective_step": (selective_step, of_step(scan)),
        "ssd_scan": (ssd_scan, ssd),
        "ssd_step": (ssd_step, of_step(ssd)),
        "causal_conv1d": (causal_conv1d, conv_inputs(2, L, 5, 4, seed)),
        "causal_conv1d_step": (causal_conv1d_step, conv_step_inputs(2, 5, 4, seed)),
        "rms_norm": (partial(rms_norm, epsilon=1e-5), norm_inputs(2, L, 5, seed)),
        "add_rms_norm": (partial(add_rms_norm, epsilon=1e-5), added_inputs(2, L, 5, seed)),
        "gated_rms_norm": (partial(gated_rms_norm, epsilon=1e-5, groups=2), gated_inputs(2, L, 6, seed)),
        "inner_rms_norm": (partial(inner_rms_norm, rank=5, epsilon=1e-5), inner_inputs(2, L, 5, N, seed)),
        "token_scores": (token_scores, score_inputs(2, L, 5, seed)),
    }


FUNCTIONS = tuple(every_function())
FLOATS = [(name, k) for name, (_, a) in every_function().items() for k, v in a.items() if v.is_floating_point()]


def call(function, a, backend, dtype=torch.float32):
    """Everything the function returns or updates, as float64."""
    a = {k: v.to(dtype) if v.is_floating_point() else v for k, v in a.items()}
    if "state" in a:
        a["state"] = a["state"].clone(memory_format=torch.contiguous_format)
    found = function(**a, backend=backend)
    found = found if isinstance(found, tuple) else (found,)
    return [t.double() for t in (*found, *([a["state"]] if "state" in a else []))]


def assert_as_the_reference(function, a, backend, **close):
    wanted = call(function, a, "reference", torch.float64)
    for found, right in zip(call(function, a, backend), wanted, strict=True):
        torch.testing.assert_close(found, right, equal_nan=True, **{"rtol": 2e-5, "atol": 2e-5, **close})


# Strides


@st.composite
def placed(draw, values):
    """A tensor of other strides: permuted, cut out of a larger one with steps, or expanded from one value."""
    t = values
    if t.dim() > 1:
        order = draw(st.permutations(range(t.dim())))
        t = t.permute(order).contiguous().permute([order.index(i) for i in range(t.dim())])
    steps = [draw(st.sampled_from([1, 1, 2, 3])) for _ in t.shape]
    large = t.new_zeros([s * n + 1 for s, n in zip(steps, t.shape)])
    if t.is_floating_point():
        large.fill_(NAN)  # a read beside the tensor shows
    cut = large[tuple(slice(1, 1 + s * n, s) for s, n in zip(steps, t.shape))]
    cut.copy_(t)
    if t.dtype == torch.int64:  # an index ascends: expanded along time it would not
        return cut
    one = [draw(st.integers(0, 4)) == 0 and n > 0 for n in t.shape]
    return cut[tuple(slice(0, 1) if o else slice(None) for o in one)].expand(t.shape)


@pytest.mark.parametrize("name", FUNCTIONS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_strides_never_matter(name, data):
    function, a = every_function(data.draw(st.integers(1, 4)), data.draw(st.integers(0, 99)))[name]
    given_ = {k: v for k, v in a.items() if k in _needed(name) or data.draw(st.booleans())}
    strided = {k: v if k == "state" else data.draw(placed(v), label=k) for k, v in given_.items()}
    for backend in FAST:
        assert_as_the_reference(function, strided, backend)


def _needed(name):
    needed = {
        "causal_conv1d": ("x", "weight", "bias"),
        "causal_conv1d_step": ("state", "x", "weight", "bias"),
        "rms_norm": ("x", "weight"),
        "add_rms_norm": ("residual", "x", "weight"),
        "gated_rms_norm": ("x", "z", "weight"),
        "inner_rms_norm": ("x",),
        "token_scores": ("delta",),
    }
    return needed.get(name, ("state", "x", "delta", "A", "B", "C"))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_parameters_of_another_dtype_and_one_stride(name, backend, dtype):
    """Windows that overlap, in a dtype that is converted: the copy may lie in another order."""
    function, a = every_function()[name]
    for k, v in a.items():
        if v.is_floating_point() and k not in ("state", "x", "delta"):
            line = torch.linspace(0.1, 1, sum(v.shape)).to(dtype)
            a[k] = (-line if k == "A" else line).as_strided(v.shape, (1,) * v.dim())
    wanted = function(**{k: v.clone() for k, v in a.items()}, backend="reference")
    found = function(**a, backend=backend)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# NaN and infinities


@pytest.mark.parametrize("backend", ("reference", *FAST))
@pytest.mark.parametrize(("name", "argument"), FLOATS)
def test_nan_stays_nan(name, argument, backend):
    function, a = every_function()[name]
    a = without(a, "index", "mask", *(["threshold"] if argument == "scale" else []))
    a[argument] = torch.full_like(a[argument], NAN)
    first = call(function, a, backend)[0]
    if name == "causal_conv1d" and argument == "initial_state":
        assert first[:, :3].isnan().all() and not first[:, 3:].isnan().any()
    else:
        assert first.isnan().all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("name", "argument"), FLOATS)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_value_that_is_not_finite(name, argument, value, backend):
    """In the last row, token and channel of an argument: the same values are not finite as in the reference."""
    function, a = every_function(N=4)[name]
    if argument == "A" and value == -INF:  # 0 times it is NaN: no filter, no mask, no absent token
        a = without(a, "threshold", "mask", "index")
    a[argument] = a[argument].clone()
    in_time = argument in IN_TIME and "step" not in name
    a[argument][(-1, 2, ..., -1) if in_time else (-1, ..., -1) if a[argument].dim() > 1 else -1] = value
    # As infinity in x, delta or B is multiplied by C in another order, Mamba-2's chunks may give it another name.
    same = (lambda t: torch.where(t.isfinite(), t, NAN)) if name == "ssd_scan" else (lambda t: t)
    wanted = call(function, a, "reference")
    for found, right in zip(call(function, a, backend), wanted, strict=True):
        if name == "ssd_scan" and backend == "triton" and argument in ("x", "initial_state"):
            found = _forgiving(found, right)
        torch.testing.assert_close(same(found), same(right), rtol=1e-4, atol=1e-4, equal_nan=True)


def _forgiving(found, right):
    """Products of tiles spread what is not finite in x over the tokens of a tile before it: see docs/kernels.md."""
    return torch.where(found.isfinite() | ~right.isfinite(), found, right)


@pytest.mark.parametrize("backend", ("reference", *FAST))
@pytest.mark.parametrize("kind", ["selective_scan", "ssd_scan"])
@pytest.mark.parametrize("gathered", [True, False])
def test_unseen_tokens_may_hold_anything(kind, backend, gathered):
    function, a = every_function(9)[kind]
    if gathered:
        a["index"] = torch.tensor([[-1, 2, 3, -1, 8, -1], [0, 1, 2, 3, 4, 5]])
    else:
        del a["index"]
    del a["D"]  # the skip shows the token its own x
    wanted = call(function, a, backend)
    unseen = ~a["mask"]
    for k in ("x", "delta", "B"):
        a[k] = torch.where(unseen.view(2, 9, *[1] * (a[k].dim() - 2)), NAN, a[k])
    torch.testing.assert_close(call(function, a, backend), wanted)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["selective_scan", "selective_step", "ssd_scan", "ssd_step"])
def test_deltas_below_zero_and_states_that_grow(name, backend):
    """Outside the models' range, where exp(delta A) overflows: as the reference."""
    function, a = every_function(3)[name]
    a = without(a, "threshold", "index", "mask")
    a["delta"] = a["delta"] * 40
    wanted = call(lambda **k: function(**k, delta_softplus=False), a, "reference")
    found = call(lambda **k: function(**k, delta_softplus=False), a, backend)
    for f, w in zip(found, wanted, strict=True):
        assert torch.equal(f.isfinite(), w.isfinite())
        torch.testing.assert_close(f[w.isfinite()], w[w.isfinite()], rtol=1e-3, atol=1e-3)


# Shapes


@pytest.mark.parametrize("backend", FAST)
def test_a_bias_that_takes_delta_below_zero(backend):
    a = without(scan_inputs(2, 9, 16, 4), "threshold", "index", "mask", "scale")
    a |= {"delta": a["delta"].abs(), "delta_bias": torch.full((16,), -40.0)}
    wanted = call(lambda **k: selective_scan(**k, delta_softplus=False), a, "reference")
    found = call(lambda **k: selective_scan(**k, delta_softplus=False), a, backend)
    for f, w in zip(found, wanted, strict=True):
        assert torch.equal(f.isfinite(), w.isfinite())
        torch.testing.assert_close(f[w.isfinite()], w[w.isfinite()], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("sizes", [(2, 0, 5, 3), (0, 3, 5, 3), (2, 3, 0, 3), (1, 1, 1, 1), (2, 3, 1, 1), (1, 2, 16, 5)])
def test_smallest_and_empty_shapes(sizes, backend):
    B, L, D, N = sizes
    scan, ssd = scan_inputs(*sizes), ssd_inputs(B, L, D, 1, max(D, 1), N)
    nothing = torch.zeros(B, 0, dtype=torch.int64)
    cases = [
        (selective_scan, scan),
        (selective_scan, {**scan, "index": nothing}),
        (token_scores, score_inputs(B, L, D)),
    ]
    cases += [(causal_conv1d, conv_inputs(B, L, D, W)) for W in (1, 2, 4)]
    cases += [(causal_conv1d_step, conv_step_inputs(B, D, W)) for W in (1, 2, 4)]
    cases += [(partial(rms_norm, epsilon=1e-5), norm_inputs(B, L, D))]
    cases += [(partial(add_rms_norm, epsilon=1e-5), added_inputs(B, L, D))]
    cases += [(partial(gated_rms_norm, epsilon=1e-5), gated_inputs(B, L, D))]
    cases += [(partial(inner_rms_norm, rank=D, epsilon=1e-5), inner_inputs(B, L, D, N))] if D and N else []
    cases += [(ssd_scan, ssd), (ssd_scan, {**ssd, "index": nothing})] if D else []
    if L:
        cases += [(selective_step, of_step(scan))] + ([(ssd_step, of_step(ssd))] if D else [])
    for function, a in cases:
        assert_as_the_reference(function, a, backend)


# Refusals


@pytest.mark.parametrize(("name", "argument"), FLOATS)
@pytest.mark.parametrize("backend", ("auto", "reference", *FAST))
def test_complex_and_integers_are_refused(name, argument, backend):
    function, a = every_function()[name]
    for dtype in (torch.complex64, torch.int64, torch.float8_e5m2):
        with pytest.raises(ValueError, match=f"^{argument} must be a float16.* tensor, found {dtype}$"):
            function(**{**a, argument: a[argument].to(dtype)}, backend=backend)


@pytest.mark.parametrize(("name", "argument"), FLOATS)
def test_two_devices_are_named(name, argument):
    function, a = every_function()[name]
    first = next(iter(a))
    if argument != first:
        with pytest.raises(ValueError, match=f"^{argument} is on meta and {first} on cpu; move one of them$"):
            function(**{**a, argument: a[argument].to("meta")})


@pytest.mark.parametrize("name", ["selective_scan", "ssd_scan", "causal_conv1d", "token_scores"])
def test_masks_and_indices_on_another_device(name):
    function, a = every_function()[name]
    for argument in {"mask", "index"} & set(a):
        with pytest.raises(ValueError, match=f"^{argument} is on meta"):
            function(**{**a, argument: a[argument].to("meta")})


@pytest.mark.parametrize("backend", ("auto", *FAST))
@pytest.mark.parametrize(("name", "argument"), FLOATS)
def test_a_gradient_is_refused(name, argument, backend):
    function, a = every_function()[name]
    a[argument] = a[argument].clone().requires_grad_()
    with pytest.raises(ValueError, match=r"no gradient; call it under torch.no_grad|gradient and is updated in place"):
        function(**a, backend=backend)
    with torch.no_grad():
        function(**a, backend=backend)


@pytest.mark.parametrize(("name", "argument"), FLOATS)
def test_the_reference_has_gradients(name, argument):
    function, a = every_function()[name]
    if argument == "state":
        with pytest.raises(ValueError, match=r"^state requires a gradient and is updated in place"):
            function(**{**a, "state": a["state"].requires_grad_()}, backend="reference")
        return
    if argument != "threshold":
        leaf = a[argument] = a[argument].double().requires_grad_()
        others = {k: v.double() if v.is_floating_point() and k != argument else v for k, v in a.items()}
        out = function(**others, backend="reference")
        (out[0] if isinstance(out, tuple) else out).sum().backward()
        assert leaf.grad.any()


@pytest.mark.parametrize("backend", ("auto", "reference", *FAST))
@pytest.mark.parametrize("name", ["selective_scan", "ssd_scan"])
@pytest.mark.parametrize("rows", [[0, 5], [-2, 1], [2, 1], [1, 1], [3, -1, 3]])
def test_an_index_outside_or_out_of_order_is_refused(name, rows, backend):
    function, a = every_function()[name]
    a["index"] = torch.tensor([list(range(len(rows))), rows])
    with pytest.raises(ValueError, match=r"^index must ascend within 0 \.\.\. 4, with -1 for absent tokens.*"):
        function(**a, backend=backend)


@pytest.mark.parametrize("backend", ("auto", "reference", *FAST))
@pytest.mark.parametrize("name", ["selective_step", "ssd_step"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_state_of_another_precision_is_refused(name, backend, dtype):
    function, a = every_function()[name]
    with pytest.raises(ValueError, match=r"^state must be torch.float32 beside x in torch.float32, found"):
        function(**{**a, "state": a["state"].to(dtype)}, backend=backend)


@pytest.mark.parametrize("name", ["selective_scan", "selective_step", "ssd_scan", "ssd_step", "causal_conv1d_step"])
def test_shapes_that_do_not_fit_are_named(name):
    function, a = every_function()[name]
    for argument in set(a) - {"state", "x"}:
        with pytest.raises(ValueError, match=f"^{argument} "):
            function(**{**a, argument: a[argument][:-1]})
        with pytest.raises(ValueError, match=f"^{argument} "):
            function(**{**a, argument: a[argument][None]})
    for argument in {"state", "x"} & set(a):
        with pytest.raises(ValueError):
            function(**{**a, argument: a[argument][0]})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_keywords_of_other_libraries_are_answered(name):
    function, a = every_function()[name]
    with pytest.raises(ValueError, match=f"^{name} has no argument seq_idx: packed sequences are not read"):
        function(**a, seq_idx=torch.zeros(2, 5, dtype=torch.int32))
    with pytest.raises(TypeError, match="unknown"):
        function(**a, unknown=1)


def test_limits_of_delta_are_an_interval():
    for limit in ((2.0, 1.0), (NAN, 1.0)):
        with pytest.raises(ValueError, match=r"^delta_limit must be"):
            ssd_scan(**every_function()["ssd_scan"][1], delta_limit=limit)


def test_float64_is_not_computed_in_float32():
    _, a = every_function()["token_scores"]
    for backend in FAST:
        with pytest.raises(ValueError, match=f"^the {backend} backend"):
            token_scores(a["delta"].double(), backend=backend)
