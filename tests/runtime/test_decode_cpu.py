"""A CPU's decode step, a block a call: the numbers of the operations one by one, on the same states."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from longscan.kernels.block import cpu as block_cpu
from longscan.runtime import load
from longscan.runtime.families.layer import Linear

from ..checkpoints import MAMBA2, random_mamba2_tensors, random_tensors, write_state_spaces
from ..conftest import relative_rms


@pytest.fixture
def blocks(monkeypatch):
    """How many blocks ran in one call."""
    calls = []
    run = block_cpu.mamba1_step
    monkeypatch.setattr(block_cpu, "mamba1_step", lambda *a: calls.append(a) or run(*a))
    return calls


def stepped(lm, tokens, **prompt):
    """Logits of three steps after a prompt, and the state."""
    out = lm.prefill(tokens[:, :30], **prompt)
    state = out.state
    steps = [lm.step(tokens[:, 30 + k], state)[0].clone() for k in range(3)]
    return torch.stack(steps, 1), state


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("filtered", [False, True])
def test_float32_steps(folder, sidecar, blocks, rows, filtered):
    tokens = torch.randint(0, 64, (rows, 33), generator=torch.Generator().manual_seed(1))
    side = sidecar if filtered else None
    found, state = stepped(load(folder, side), tokens)
    assert len(blocks) == 3 * 3
    assert all((call[5] is not None) == filtered for call in blocks)
    wanted, right = stepped(load(folder, side, backend="reference"), tokens)
    assert len(blocks) == 3 * 3  # the reference runs no loop
    assert relative_rms(found, wanted) < 1e-5 and relative_rms(state.ssm, right.ssm) < 1e-5
    assert relative_rms(state.conv, right.conv) < 1e-5


def test_rows_of_unequal_thresholds(folder, sidecar, blocks):
    g = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 64, (n,), generator=g) for n in (12, 40)]
    token = torch.tensor([3, 4])
    found, wanted = (
        lm.step(token, lm.prefill(rows, total_length=math.inf).state)[0]
        for lm in (load(folder, sidecar), load(folder, sidecar, backend="reference"))
    )
    assert blocks[0][5].shape[0] == 2
    assert relative_rms(found, wanted) < 1e-5


def test_bfloat16_steps_are_nearer_to_float64_than_torchs(folder, blocks):
    tokens = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(1))
    lm, slow = load(folder, dtype="bfloat16"), load(folder, dtype="bfloat16", backend="reference")
    exact = load(folder, dtype="float64")
    exact.weights = _as_float64(lm.weights)
    wanted, right = stepped(exact, tokens)
    for model in (lm, slow):  # the same prompt, whose own error would hide the steps'
        model.prefill = lambda *a, model=model: _rounded(exact.prefill(*a), model)
    found, state = stepped(lm, tokens)
    assert len(blocks) == 3 * 3 and state.conv.dtype == torch.bfloat16
    theirs, _ = stepped(slow, tokens)
    assert relative_rms(found, wanted) <= relative_rms(theirs, wanted) < 0.05
    assert relative_rms(state.conv, right.conv) < 1e-2


def _rounded(out, model):
    state = model.new_state(out.state.batch)
    state.conv.copy_(out.state.conv)
    state.ssm.copy_(out.state.ssm)
    state.length = out.state.length.clone()
    return replace(out, state=state)


def _as_float64(value):
    """Weights with every tensor in float64."""
    if isinstance(value, torch.Tensor):
        return value.double()
    if isinstance(value, torch.dtype):
        return torch.float64
    if isinstance(value, tuple):
        return tuple(map(_as_float64, value))
    if hasattr(value, "__dataclass_fields__"):
        return replace(value, **{name: _as_float64(getattr(value, name)) for name in value.__dataclass_fields__})
    return value


@pytest.mark.parametrize("kind", ["five rows", "float16", "float64", "layer norm", "mamba2", "a module"])
def test_what_the_loop_does_not_know_runs_operation_by_operation(tmp_path, blocks, kind):
    tensors = random_mamba2_tensors() if kind == "mamba2" else random_tensors()
    folder = write_state_spaces(tmp_path, tensors, **({"ssm_cfg": MAMBA2} if kind == "mamba2" else {}))
    dtype = kind if kind in ("float16", "float64") else "float32"
    lm = load(folder, dtype=dtype)
    if kind == "layer norm":
        lm.config = replace(lm.config, rms_norm=False)
    if kind == "a module":
        first, *rest = lm.weights.layers
        module = Linear(first.in_proj.weight).__call__
        lm.weights = replace(lm.weights, layers=(replace(first, in_proj=module), *rest))
    tokens = torch.randint(0, 64, (5 if kind == "five rows" else 2, 33))
    logits, _ = stepped(lm, tokens)
    assert logits.isfinite().all() and not blocks
