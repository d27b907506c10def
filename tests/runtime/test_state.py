"""Saved states: whole round trips, branches, and a refusal of everything they do not belong to."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors import safe_open

from longscan.runtime import Sidecar, SidecarError, load
from longscan.runtime.files import save_sealed
from longscan.runtime.sidecar.digest import digest

from ..checkpoints import make_sidecar, random_tensors, write_state_spaces


@pytest.fixture
def saved(lm, ids, tmp_path):
    path = tmp_path / "state.safetensors"
    lm.prefill(ids).state.save(path)
    return path


def test_the_file_says_what_it_belongs_to(lm, saved):
    with safe_open(saved, framework="pt") as file:
        meta = file.metadata()
    assert meta["model_fingerprint"] == lm.fingerprint
    assert meta["sidecar_sha256"] == digest(lm.sidecar) and len(digest(lm.sidecar)) == 64
    assert meta["length"] == "[64, 64]"


def test_another_sidecar_is_refused(folder, plain, sidecar, saved, tmp_path):
    with pytest.raises(ValueError, match="another sidecar"):
        plain.load_state(saved)
    other = load(folder, make_sidecar(plain, keep=31))
    with pytest.raises(ValueError, match="another sidecar"):
        other.load_state(saved)
    sidecar.write(tmp_path / "same.longscan.safetensors")  # the same contents from a file are the same sidecar
    same = load(folder, Sidecar.read(tmp_path / "same.longscan.safetensors"))
    assert same.load_state(saved).length.tolist() == [64] * 2


def test_another_model_is_refused(saved, tmp_path):
    other = load(write_state_spaces(tmp_path / "other", random_tensors(seed=1)))
    with pytest.raises(ValueError, match="another model"):
        other.load_state(saved)


def test_a_torn_state_is_refused(lm, saved, tmp_path):
    meta = {"schema": "longscan.state", "model_fingerprint": lm.fingerprint, "sidecar_sha256": digest(lm.sidecar)}
    save_sealed(tmp_path / "torn", {"conv": torch.zeros(1)}, meta)
    with pytest.raises(ValueError, match="not a complete state"):
        lm.load_state(tmp_path / "torn")
    save_sealed(tmp_path / "no", {"conv": torch.zeros(1)}, {"schema": "other"})
    with pytest.raises(ValueError, match="no saved state"):
        lm.load_state(tmp_path / "no")


def test_a_state_of_which_one_bit_was_lost_is_refused(lm, saved):
    data = bytearray(saved.read_bytes())
    data[-5] ^= 1  # in the ssm state: it would read on, and say something else
    saved.write_bytes(data)
    with pytest.raises(ValueError, match="not what was saved: damaged, or another file; make it again"):
        lm.load_state(saved)


def test_a_loaded_state_goes_on_as_if_never_saved(lm, ids, tmp_path):
    for total in (None, math.inf):
        state = lm.prefill(ids, method="filter", total_length=total).state
        state.save(tmp_path / "s")
        again = lm.load_state(tmp_path / "s")
        assert (again.plan, again.total, again.method) == (state.plan, total, "filter")
        for _ in range(3):
            left, state = lm.step(ids[:, 0], state)
            right, again = lm.step(ids[:, 0], again)
            assert torch.equal(left, right)
        left, right = (lm.prefill(ids[:, :9], state=s) for s in (state, again))  # a prompt after a generation
        assert torch.equal(left.logits, right.logits) and left.state.length.tolist() == [76, 76]


def test_a_state_can_be_read_in_another_dtype(folder, sidecar, saved):
    state = load(folder, sidecar, dtype=torch.float64).load_state(saved)
    assert state.conv.dtype == state.ssm.dtype == torch.float64


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A model of the same shape and other weights."""
    return load(write_state_spaces(tmp_path_factory.mktemp("stranger"), random_tensors(seed=1)))


def test_another_models_sidecar_is_refused(stranger, sidecar):
    with pytest.raises(SidecarError, match="load the model it was made for"):
        stranger.with_sidecar(sidecar)


def test_another_models_state_is_not_gone_on_from(plain, stranger, ids):
    state = plain.prefill(ids).state
    with pytest.raises(ValueError, match="by another model"):
        stranger.prefill(ids, state=state)
    with pytest.raises(ValueError, match="by another model"):
        stranger.step(ids[:, 0], state)


@pytest.mark.parametrize("total", [64, math.inf])
def test_a_prompt_is_read_to_its_end_with_the_sidecar_it_began_with(plain, lm, ids, total):
    half = lm.prefill(ids[:, :40], total_length=total).state
    for other in (plain, plain.with_sidecar(make_sidecar(plain, keep=31))):
        with pytest.raises(ValueError, match="begun with another sidecar"):
            other.prefill(ids[:, 40:], state=half)
    assert lm.prefill(ids[:, 40:], state=half).state.length.tolist() == [64, 64]


def test_a_prompt_that_is_complete_may_be_gone_on_from_under_another_sidecar(plain, lm, ids, tmp_path):
    state = plain.prefill(ids).state
    path = tmp_path / "state.safetensors"
    lm.prefill(ids, state=state).state.save(path)
    assert lm.load_state(path).length.tolist() == [128, 128]
    lm.step(ids[:, 0], state)[1].save(path)  # in place
    assert lm.load_state(path).length.tolist() == [65, 65]
    with pytest.raises(ValueError, match="another sidecar"):
        plain.load_state(path)


@pytest.mark.parametrize("total", [math.nan, 0, -1, 70.5])
def test_a_total_that_is_no_length_is_refused(lm, ids, total):
    with pytest.raises(ValueError, match="whole number of tokens"):
        lm.prefill(ids, total_length=total)
