"""Saved states: whole round trips, branches, and a refusal of everything they do not belong to."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors import safe_open

from longscan.runtime import Sidecar, load
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
