"""Sequences without an end: the filter follows the length, and how a sequence is cut changes nothing."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longscan.runtime import Plan, load
from longscan.runtime.reading.growth import Growth

from ..checkpoints import make_sidecar
from ..conftest import relative_rms


@pytest.fixture(scope="module")
def oracle(folder, sidecar):
    return load(folder, sidecar, dtype=torch.float64)


@pytest.fixture(scope="module")
def text():
    return torch.randint(0, 64, (2, 90), generator=torch.Generator().manual_seed(7))


def test_cells_are_fixed_and_grow_by_an_eighth_of_an_octave(lm):
    growth = Growth(lm.sidecar, lm.weights)
    assert growth.until(0) == growth.until(15) == 16  # the training length: unfiltered before it
    edges = [16]
    while edges[-1] < 10**7:
        edges.append(growth.until(edges[-1]))
    assert {2**k for k in range(4, 23)} <= set(edges)
    assert all(b <= math.ceil(a * 2 ** (1 / 8)) + 1 for a, b in pairwise(edges))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_chunks_pieces_and_steps_are_one_sequence(oracle, text, data):
    whole = oracle.prefill(text, total_length=math.inf)
    cuts = sorted(data.draw(st.sets(st.integers(1, 89), max_size=3)))
    state, out = None, None
    for start, stop in zip([0, *cuts], [*cuts, 90]):
        part, total = text[:, start:stop], math.inf if start == 0 else None
        if state is not None and data.draw(st.booleans()):
            for t in range(part.shape[1]):
                out, state = oracle.step(part[:, t], state)
        else:
            found = oracle.prefill(part, state=state, total_length=total, chunk=data.draw(st.integers(1, 95)))
            out, state = found.logits[:, -1], found.state
    assert relative_rms(out, whole.logits[:, -1]) < 1e-9
    assert relative_rms(state.ssm, whole.state.ssm) < 1e-9
    assert state.plan == Plan("filter", math.inf)


def test_the_first_tokens_are_plain_and_the_later_filtered(lm, plain, text):
    whole, bare = (m.prefill(text, total_length=math.inf, logits_to_keep=0).logits for m in (lm, plain))
    assert relative_rms(whole[:, :16], bare[:, :16]) < 1e-5
    assert relative_rms(whole[:, 16:], bare[:, 16:]) > 1e-3


def test_each_token_has_the_g_of_its_own_cell(oracle, text):
    """The transcription: one token a call, the layer plan read from the sidecar by hand."""
    growth, state = Growth(oracle.sidecar, oracle.weights), oracle.new_state(2)
    for t in range(90):
        g = [plan.threshold for plan in growth.layer_plans(state)]
        for layer in range(3):
            if t < 16:
                assert g[layer] is None
            else:
                assert torch.equal(g[layer], oracle.sidecar.thresholds(layer, growth.until(t)))
        state.length += 1


def test_rows_of_unequal_length_grow_each_by_itself(oracle, text):
    rows = [text[0], text[1, :37]]
    both = oracle.prefill(rows, total_length=math.inf, chunk=40)
    alone = [oracle.prefill(row[None], total_length=math.inf) for row in rows]
    assert relative_rms(both.state.ssm, torch.cat([one.state.ssm for one in alone], 1)) < 1e-9
    token = torch.tensor([3, 4])
    stepped = torch.cat([oracle.step(token[b : b + 1], one.state)[0] for b, one in enumerate(alone)])
    assert relative_rms(oracle.step(token, both.state)[0], stepped) < 1e-9


@pytest.mark.parametrize("how", ["asked", "said by the sidecar"])
def test_steps_are_unfiltered_if_asked_or_said(folder, sidecar, lm, plain, text, how):
    published = load(folder, sidecar, filter_decode=False)
    if how != "asked":
        side = make_sidecar(plain, filter_decode=False)
        published, lm = load(folder, side), load(folder, side, filter_decode=True)
    state = published.prefill(text, method="filter").state
    wanted, _ = plain.step(text[:, 0], state.clone())
    filtered, _ = lm.step(text[:, 0], state.clone())
    assert torch.equal(published.step(text[:, 0], state)[0], wanted)
    assert relative_rms(filtered, wanted) > 1e-4


@pytest.mark.parametrize("method", ["none", "decimate"])
def test_steps_keep_to_the_method_of_the_prompt(lm, plain, text, method):
    state = lm.prefill(text, method=method).state
    assert torch.equal(lm.step(text[:, 0], state.clone())[0], plain.step(text[:, 0], state.clone())[0])


def test_after_decimation_g_counts_the_tokens_each_scan_saw(lm, text):
    state = lm.prefill(text, method="both").state  # 90 tokens; 30 + 1 of them from layer 1 on
    plans, end = lm._growth.layer_plans(state), lm._growth.until(90)
    assert torch.equal(plans[0].threshold, lm.sidecar.thresholds(0, end))
    for layer in (1, 2):
        assert torch.equal(plans[layer].threshold, lm.sidecar.thresholds(layer, 31 + end - 90))
        assert plans[layer].keep is None
