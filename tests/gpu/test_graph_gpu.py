"""Decode steps as CUDA graphs on a real GPU: the same numbers, whatever other threads do and whatever fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from longscan.runtime import load
from longscan.runtime.decode import graph
from longscan.runtime.reading.forward import step_layers

from ..checkpoints import make_sidecar

pytestmark = pytest.mark.gpu


def launched(lm, token, state):
    """One step without a graph."""
    plans = None if lm.sidecar is None else lm._growth.layer_plans(state)
    with torch.inference_mode():
        logits = step_layers(lm.weights, lm.config, token, state, lm.backend, plans)
        state.length += 1
    return logits


@pytest.mark.parametrize("kind", ["demo", "demo-mamba2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("filtered", [False, True])
def test_replayed_and_launched_one_by_one(kind, dtype, filtered, relative_rms):
    """Over an edge of the filter's cells; rows of one length and of two."""
    lm = load(kind, device="cuda", dtype=dtype)
    if filtered:
        lm = lm.with_sidecar(make_sidecar(lm))
    ids = torch.randint(0, 64, (2, 30))
    for prompts in (ids, [ids[0], ids[1, :20]]):
        own, state = (lm.prefill(prompts, method="filter" if filtered else "none").state for _ in range(2))
        for t in range(40):
            token = torch.full((2,), t, device="cuda")
            wanted = launched(lm, token, own)
            found, state = lm.step(token, state)
            assert relative_rms(found, wanted) < 1e-6 and relative_rms(state.ssm, own.ssm) < 1e-6
        assert state.graph is not None and state.graph._captured is not None


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "drawn"])
def test_threads_generate_with_graphs_of_their_own(options, caplog):
    """While one captures the others read prompts, step, allocate and draw, and no capture fails; nor with draws that
    nobody has seeded."""
    lm = load("demo", device="cuda", dtype="float32")
    lm = lm.with_sidecar(make_sidecar(lm))
    prompts = [torch.randint(0, 64, (n,)).tolist() for n in (20, 33, 47, 80)] * 4
    alone = [list(lm.generate(prompt, 60, **options)) for prompt in prompts]
    with ThreadPoolExecutor(5) as pool:
        unseeded = [pool.submit(lambda: list(lm.generate(prompts[0], 60, temperature=1.0))) for _ in range(8)]
        assert list(pool.map(lambda prompt: list(lm.generate(prompt, 60, **options)), prompts)) == alone
        assert len({tuple(one.result()) for one in unseeded}) > 1
    assert "one by one" not in caplog.text


def test_a_capture_that_fails_changes_nothing(monkeypatch, caplog, relative_rms):
    lm = load("demo", device="cuda", dtype="float32")
    own, broken, later = (lm.prefill(torch.arange(30)[None]).state for _ in range(3))
    begin = graph.capture

    def spoiled(run, device):
        def spoil():
            torch.cuda.synchronize()  # not permitted during a capture
            return run()

        return begin(spoil, device)

    stream = torch.cuda.current_stream()
    monkeypatch.setattr(graph, "capture", spoiled)
    token = torch.tensor([5], device="cuda")
    for _ in range(4):
        wanted = launched(lm, token, own)
        found, broken = lm.step(token, broken)
        assert relative_rms(found, wanted) < 1e-6 and relative_rms(broken.ssm, own.ssm) < 1e-6
    assert "launched one by one" in caplog.text and torch.cuda.current_stream() == stream
    torch.randn(3, device="cuda")
    monkeypatch.undo()
    for _ in range(4):
        found, later = lm.step(token, later)
    assert relative_rms(found, wanted) < 1e-6 and later.graph._captured is not None
