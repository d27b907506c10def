"""Chunks change nothing: decimation streams exactly, memory stays bounded, a failed pass is repeated smaller."""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longscan.runtime import Sidecar, load
from longscan.runtime.reading import prefill as prefill_module
from longscan.runtime.reading.chunks import bytes_a_token, pick_chunk
from longscan.runtime.reading.forward import run_layers
from longscan.runtime.reading.reservoir import Tokens, merge, select
from longscan.runtime.reading.state import State

from ..checkpoints import make_sidecar
from ..conftest import relative_rms

quick = settings(max_examples=25, deadline=None)


def nested(plain, layers, keep) -> Sidecar:
    """make_sidecar's filter, and a decimation at several layers."""
    side = make_sidecar(plain)
    weights = torch.rand(len(layers), plain.weights.channels, generator=torch.Generator().manual_seed(3))
    changed = {"layers": torch.tensor(layers), "keep": torch.tensor(keep), "weights": weights}
    return Sidecar({**side.tensors, **{f"bands.0.{k}": v for k, v in changed.items()}}, side.metadata)


@pytest.fixture(scope="module")
def oracles(folder, plain):
    """float64 models, whose scores no chunk can move across the cut."""
    kinds = (([1], [30]), ([0, 2], [40, 25]), ([0, 1, 2], [50, 20, 21]))
    return [load(folder, nested(plain, *kind), dtype=torch.float64) for kind in kinds]


def tokens_of(score):
    """Tokens whose other tensors tell which token they belong to."""
    batch, L = score.shape
    place = torch.arange(L).expand(batch, L)
    wide = place[:, :, None].double()
    return Tokens(score, place, wide, wide, wide, wide, wide, wide)


@quick
@given(st.data())
def test_running_selection_is_the_global_one_ties_included(data):
    L = data.draw(st.integers(1, 150))
    keep, r = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9))
    seed = data.draw(st.integers(0, 999))
    score = torch.randint(0, 4, (2, L), generator=torch.Generator().manual_seed(seed)).float()  # nearly all are ties
    whole, waiting, start = tokens_of(score), (), 0
    while start < L:
        stop = min(L, start + data.draw(st.integers(1, 50)))
        waiting = merge(waiting, whole.part(start, stop), keep, r, final=stop == L)
        assert sum(piece.score.shape[1] for piece in waiting) <= 2 * (max(keep, 20) + r)
        start = stop
    (tokens,) = waiting
    wanted = select(score, keep, r)
    assert torch.equal(tokens.positions, wanted)
    assert torch.equal(tokens.x[:, :, 0].long(), wanted) and torch.equal(tokens.score, score.gather(1, wanted))


@quick
@given(data=st.data())
def test_any_chunk_and_any_pieces_equal_one_shot(oracles, ids, data):
    lm = data.draw(st.sampled_from(oracles))
    method = data.draw(st.sampled_from(["decimate", "both"]))
    r = data.draw(st.integers(1, 6))
    whole = lm.prefill(ids, method=method, logits_to_keep=r)
    cuts = sorted(data.draw(st.sets(st.integers(1, 63), max_size=3)))
    state, out = None, None
    for start, stop in zip([0, *cuts], [*cuts, 64]):
        chunk = data.draw(st.one_of(st.none(), st.integers(1, 70)))
        out = lm.prefill(ids[:, start:stop], state=state, total_length=64, chunk=chunk, method=method, logits_to_keep=r)
        state = out.state
        assert out.plan == whole.plan
        if stop < 64:
            assert out.logits.shape[:2] == (2, 0) and out.positions.shape == (2, 0)
            with pytest.raises(ValueError, match="not complete"):
                lm.step(ids[:, 0], state)
    assert torch.equal(out.positions, whole.positions) and out.state.reservoirs == {}
    assert relative_rms(out.logits, whole.logits) < 1e-9
    assert relative_rms(out.state.ssm, whole.state.ssm) < 1e-9
    assert relative_rms(out.state.conv, whole.state.conv) < 1e-9
    lm.step(ids[:, 0], out.state)


@pytest.mark.parametrize("chunk", [1, 7, 33])
def test_float32_streams_too(lm, ids, chunk):
    whole = lm.prefill(ids, method="both", logits_to_keep=0)
    parts = lm.prefill(ids, method="both", logits_to_keep=0, chunk=chunk)
    assert torch.equal(parts.positions, whole.positions)
    assert relative_rms(parts.logits, whole.logits) < 1e-4


def test_a_waiting_prompt_can_be_saved_and_branched(oracles, ids, tmp_path):
    lm = oracles[1]
    whole = lm.prefill(ids)
    first = lm.prefill(ids[:, :50], total_length=64).state
    assert set(first.reservoirs) == {0} and 41 <= sum(t.score.shape[1] for t in first.reservoirs[0]) <= 82
    first.save(tmp_path / "half.safetensors")
    branch = first.clone()
    lm.prefill(ids[:, :14], state=branch)  # another end; `first` must not notice
    for state in (first, lm.load_state(tmp_path / "half.safetensors")):
        out = lm.prefill(ids[:, 50:], state=state)
        assert relative_rms(out.logits, whole.logits) < 1e-9


def test_unequal_pieces_of_a_decimated_prompt_are_refused(lm, ids):
    mask = torch.ones(2, 32, dtype=torch.bool)
    mask[0, :5] = False
    with pytest.raises(ValueError, match="total_length"):
        lm.prefill(ids[:, :32], attention_mask=mask, total_length=64, method="decimate")
    half = lm.prefill(ids[:, :32], total_length=64, method="decimate").state
    with pytest.raises(ValueError, match="equally long"):
        lm.prefill(ids[:, :32], attention_mask=mask, state=half)


class Limited:
    """run_layers on a device that holds `most` tokens at once."""

    def __init__(self, monkeypatch, most, error):
        self.most, self.error, self.tries, self._real = most, error, [], run_layers
        monkeypatch.setattr(prefill_module, "run_layers", self)

    def fail(self, *_):
        raise self.error

    def __call__(self, weights, config, stream, state, plans, **options):
        self.tries.append(stream.residual.shape[1])
        if self.tries[-1] > self.most:  # it fails half way, in the second layer, and leaves the state as it was
            second = SimpleNamespace(inputs=self.fail)
            weights = replace(weights, layers=(weights.layers[0], second, *weights.layers[2:]))
            before = state.clone()
            try:
                self._real(weights, config, stream, state, plans, **options)
            finally:
                assert torch.equal(state.ssm, before.ssm) and torch.equal(state.conv, before.conv)
                assert state.reservoirs == before.reservoirs
        return self._real(weights, config, stream, state, plans, **options)


@pytest.mark.parametrize("method", ["filter", "both"])
def test_out_of_memory_halves_the_chunk_and_goes_on(lm, ids, method, monkeypatch, caplog):
    whole = lm.prefill(ids, method=method)
    limited = Limited(monkeypatch, 20, torch.OutOfMemoryError("CUDA out of memory"))
    with caplog.at_level(logging.WARNING):
        out = lm.prefill(ids, method=method, chunk=50)
    assert limited.tries == [50, 25, 12, 12, 12, 12, 12, 4]
    assert "going on with 12" in caplog.text
    assert relative_rms(out.logits, whole.logits) < 1e-4 and relative_rms(out.state.ssm, whole.state.ssm) < 1e-4


def test_a_pass_copies_no_state(lm, ids, monkeypatch):
    monkeypatch.setattr(State, "clone", lambda self: pytest.fail("cloned"))
    lm.prefill(ids, chunk=9, method="both")


def test_lengths_are_known_without_asking_the_gpu(lm, ids):
    """They stay on the CPU wherever the model is."""
    elsewhere = copy(lm)
    elsewhere.weights = replace(lm.weights, embedding=lm.weights.embedding.to("meta"))
    assert elsewhere.new_state(2).conv.is_meta and elsewhere.new_state(2).length.device.type == "cpu"


def test_other_errors_and_single_tokens_are_not_retried(lm, ids, monkeypatch):
    Limited(monkeypatch, 0, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    with pytest.raises(RuntimeError, match="can't allocate"):
        lm.prefill(ids[:, :4])
    limited = Limited(monkeypatch, 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        lm.prefill(ids)
    assert len(limited.tries) == 1


def test_the_chunk_comes_from_the_models_shape(plain, monkeypatch):
    chunk = pick_chunk(plain.weights, 1)
    assert chunk & (chunk - 1) == 0 and 2**14 <= chunk * bytes_a_token(plain.weights) <= 2**24
    assert pick_chunk(plain.weights, 4) == chunk // 4
    monkeypatch.setattr("longscan.runtime.reading.chunks._memory", lambda device: 2**20)  # a very small machine
    assert pick_chunk(plain.weights, 4) == 128 and pick_chunk(plain.weights, 10**6) == 1
    limited = Limited(monkeypatch, 10**9, MemoryError())
    plain.prefill(torch.zeros(4, 300, dtype=torch.int64))
    assert limited.tries == [128, 128, 44]


def test_calls_report_what_they_read(lm, ids):
    read = []
    lm.prefill(ids, chunk=24, on_chunk=read.append)
    assert read == [48, 48, 32]
