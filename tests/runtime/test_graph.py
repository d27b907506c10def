"""Decode as a CUDA graph, without a GPU: a step is traced once, then its operations repeat on the trace's tensors."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from longscan.runtime import load, model
from longscan.runtime.decode import graph

from ..checkpoints import MAMBA2, make_sidecar, random_mamba2_tensors, random_tensors, write_state_spaces


@pytest.fixture
def captures(monkeypatch):
    """As with a CUDA graph, operations and addresses are fixed by a capture, which changes nothing. Counts them."""
    made = []

    def capture(run, device):
        made.append(device)
        (_, *states), before = bound(run), [t.clone() for t in bound(run)[1:]]
        traced = make_fx(run)()
        out = torch.zeros_like(traced())
        for own, kept in zip(states, before):
            own.copy_(kept)
        return lambda: out.copy_(traced()), out

    monkeypatch.setattr(graph, "capture", capture)
    monkeypatch.setattr(model, "is_graphed", lambda backend, ssm: True)
    return made


def bound(run):
    """Weights, conv and ssm of the graph whose method made `run`."""
    return next(c.cell_contents for c in run.__closure__ if isinstance(c.cell_contents, graph.StepGraph))._bound


@pytest.fixture(params=[(random_tensors, {}), (random_mamba2_tensors, MAMBA2)], ids=["Mamba-1", "Mamba-2"])
def pair(request, tmp_path):
    """The same model plain and with a sidecar; L = 16."""
    tensors, ssm_cfg = request.param
    lm = load(write_state_spaces(tmp_path, tensors(), ssm_cfg=ssm_cfg), backend="reference")
    return lm, lm.with_sidecar(make_sidecar(lm))


def compare(lm, prompts, steps, captures, monkeypatch, method="auto"):
    """Steps one by one and replayed, from equal states: how many captures it took."""
    own, state = (lm.prefill(prompts, method=method).state for _ in range(2))
    captures.clear()
    for t in range(steps):
        token = torch.full((own.batch,), t % 64)
        with monkeypatch.context() as patch:
            patch.setattr(model, "is_graphed", lambda backend, ssm: False)
            wanted, own = lm.step(token, own)
        found, state = lm.step(token, state)
        assert torch.equal(found, wanted), t
        assert torch.equal(state.ssm, own.ssm) and torch.equal(state.conv, own.conv)
    assert state.length.tolist() == own.length.tolist()
    return len(captures)


def test_one_capture_whatever_g(pair, captures, monkeypatch):
    """g steps at every edge of a cell, and for a row of its own; the graph stays."""
    plain, lm = pair
    ids = torch.randint(0, 64, (2, 30))
    assert compare(plain, ids, 8, captures, monkeypatch) == 1
    assert compare(lm, ids, 40, captures, monkeypatch, "filter") == 1
    assert compare(lm, ids[:1], 40, captures, monkeypatch, "both") == 1
    assert compare(lm, [ids[0], ids[1, :20]], 40, captures, monkeypatch, "filter") == 1


def test_another_kind_of_step_is_captured_anew(pair, captures, monkeypatch):
    """A sequence that passes L gets thresholds; the first step that has them compiles, the second is captured."""
    assert compare(pair[1], torch.randint(0, 64, (1, 10)), 20, captures, monkeypatch, "filter") == 2


def test_a_graph_is_of_one_state_and_one_model(pair, captures):
    plain, _ = pair
    state = plain.prefill(torch.randint(0, 64, (2, 30))).state
    for _ in range(3):
        plain.step(torch.tensor([1, 2]), state)
    assert state.graph is not None
    others = [state.clone(), state.rows([1, 0]), copy.copy(state), copy.deepcopy(state)]
    others.append(pickle.loads(pickle.dumps(state)))
    assert all(other.graph is None for other in others) and "graph" not in repr(state)
    other, before = copy.copy(plain), state.graph
    other.weights = copy.copy(plain.weights)
    other.step(torch.tensor([1, 2]), state)
    assert state.graph is not before


def test_logits_are_the_callers_own(pair, captures):
    state = pair[0].prefill(torch.randint(0, 64, (1, 30))).state
    found = [pair[0].step(torch.tensor([t]), state)[0] for t in range(5)]
    assert len({logits.data_ptr() for logits in found}) == 5 and not torch.equal(found[3], found[4])


def test_generation(pair, captures, monkeypatch):
    """Rows that end leave the batch, and the rest is captured anew."""
    _, lm = pair
    prompts, found = [list(range(1, 31)), list(range(5, 25))], []
    alone = [list(lm.generate(prompt, 12, stop=7)) for prompt in prompts]
    for graphed in (False, True):
        monkeypatch.setattr(model, "is_graphed", lambda backend, ssm, on=graphed: on)
        found.append(list(lm.generate(prompts, 12, stop=[alone[0][4]])))
    assert found[0] == found[1] and captures


def test_switched_off(pair, captures):
    plain, _ = pair
    plain.cuda_graph = False
    state = plain.prefill(torch.randint(0, 64, (1, 30))).state
    for t in range(4):
        plain.step(torch.tensor([t]), state)
    assert state.graph is None and not captures
    assert load("demo", cuda_graph=False).with_sidecar(None).cuda_graph is False


def test_what_cannot_be_captured_is_launched_one_by_one(pair, captures, monkeypatch, caplog):
    def capture(run, device):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(graph, "capture", capture)
    with caplog.at_level(logging.WARNING, "longscan.runtime"):
        assert compare(pair[0], torch.randint(0, 64, (1, 30)), 5, captures, monkeypatch) == 0
    assert [r.getMessage() for r in caplog.records] == [
        "no CUDA graph of a decode step (out of memory): its kernels are launched one by one"
    ]
