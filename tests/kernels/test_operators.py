"""torch.compile and torch.export take the scans whole: one graph, the same numbers, states updated in place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import longscan.kernels
from longscan.kernels import linear, rms_norm
from longscan.kernels.operators import SCHEMAS

from .cases import without
from .test_arguments import call, every_function

NAMES = [*SCHEMAS, "causal_conv1d_step", "rms_norm", "add_rms_norm", "gated_rms_norm", "inner_rms_norm"]


def inputs(name):
    function, a = every_function()[name]
    return function, {k: v.clone(memory_format=torch.contiguous_format) for k, v in a.items()}


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_without_a_break(name, compiler):
    function, a = inputs(name)
    wanted = call(function, a, "cpu")
    torch._dynamo.reset()
    compiled = torch.compile(lambda **a: function(**a), backend=compiler, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(call(compiled, a, "cpu"), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_exported(name):
    function, a = inputs(name)

    class Model(torch.nn.Module):
        def forward(self, a):
            return function(**a)

    with torch.no_grad():
        program = torch.export.export(Model(), (a,))
        found, state = program.module()(a), a.get("state")
        wanted = call(function, inputs(name)[1], "auto")
    found = [*(found if isinstance(found, tuple) else (found,)), *([] if state is None else [state])]
    torch.testing.assert_close([t.double() for t in found], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("options", [True, False])
def test_the_shapes_told_are_those_given(name, options):
    """torch's own check of an operator: schema, mutation, fake tensors, tracing."""
    _, a = inputs(name)
    if not options:
        a = without(a, "index", "mask", "initial_state", "D", "z", "delta_bias", "threshold", "scale")
    names = [part.split()[-1] for part in SCHEMAS[name].split(") ->")[0].strip("(").split(", ")]
    given = {"delta_softplus": True, "delta_limit": [0.0, 10.0], "backend": "cpu", **a}
    operator = getattr(torch.ops.longscan, name).default
    torch.library.opcheck(operator, tuple(given.get(k) for k in names))


def test_a_product_and_a_norm_are_the_compilers_own():
    def both(x, w):
        return linear(rms_norm(x, w[0], 1e-5), w)

    x, w = torch.randn(1, 8), torch.randn(8, 8)
    torch.testing.assert_close(torch.compile(both, backend="aot_eager", fullgraph=True)(x, w), both(x, w))


def test_imported_once_more_under_another_name_the_operators_stay():
    """transformers does, where a checkout is on the path: it looks for a library called kernels."""
    code = """if True:
        import sys, torch, longscan.kernels as ours
        before = torch.ops.longscan.token_scores.default
        sys.path.insert(0, sys.argv[1])
        import kernels as again
        assert again.__name__ == "kernels" and again.token_scores is not ours.token_scores
        assert torch.ops.longscan.token_scores.default is before
        delta = torch.randn(1, 6, 4)
        for module in (ours, again):
            compiled = torch.compile(module.token_scores, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(delta), ours.token_scores(delta))
    """
    root = str(Path(longscan.kernels.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("W", [1, 2, 4])
@pytest.mark.parametrize("L", [1, 5])
def test_a_convolutions_state_is_a_tensor_of_its_own(W, L):
    """At W = 1 it holds nothing, and still must not be the one that was given."""
    x, before = torch.randn(2, L + 1, 16)[:, :L], torch.randn(2, 16, W - 1)
    torch.library.opcheck(torch.ops.longscan.causal_conv1d.default, (x, torch.randn(16, W), None, before, None, "auto"))
