"""Zamba2 and Bamba, hybrids with attention, behind LM's interface: against transformers with its delta set to zero."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from longscan.runtime import CheckpointError, Plan, Sidecar, SidecarError, attach, load

from ...checkpoints import make_sidecar
from .models import build

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 64, (2, 64), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", params=["zamba2", "bamba"])
def pair(request, tmp_path_factory):
    """A transformers model, and the same checkpoint loaded with a sidecar that filters."""
    peer = build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    peer.save_pretrained(folder)
    return peer, load(folder, without_decimation(make_sidecar(load(folder))))


def without_decimation(sidecar: Sidecar) -> Sidecar:
    """As a calibration of a hybrid makes it."""
    tensors = {name: t for name, t in sidecar.tensors.items() if name.split(".")[-1] in ("lengths", "thresholds")}
    policy = sidecar.metadata["policy"].replace('"method":"both"', '"method":"filter"')
    return replace(sidecar, tensors=tensors, metadata={**sidecar.metadata, "policy": policy})


def filtered_by_hand(monkeypatch, peer, sidecar, length):
    """Let transformers' own scan see delta = 0 where a layer's delta is not above g."""
    module = importlib.import_module(type(peer).__module__)
    scan, layers = module.mamba2_chunk_scan, iter(range(int(sidecar.metadata["n_layer"])))

    def filtered(x, dt, A, B, C, *, dt_bias, dt_softplus, dt_limit, **rest):
        g = sidecar.thresholds(next(layers), length)
        delta = F.softplus(dt + dt_bias).clamp(*dt_limit)
        delta = torch.where(delta > g, delta, torch.zeros(()))
        return scan(x, delta, A, B, C, dt_bias=None, dt_softplus=False, dt_limit=(0.0, float("inf")), **rest)

    monkeypatch.setattr(module, "mamba2_chunk_scan", filtered)


def test_the_plain_model_is_transformers_own(pair, ids, relative_rms):
    peer, lm = pair
    with torch.no_grad():
        wanted = peer(ids).logits
    for chunk in (None, 23):
        out = lm.prefill(ids, method="none", logits_to_keep=0, chunk=chunk)
        assert relative_rms(out.logits, wanted) < 1e-4
        assert out.positions.tolist() == [list(range(64))] * 2 and out.plan == Plan("none", 64)
    assert relative_rms(lm.prefill(ids, method="none", logits_to_keep=3, chunk=2).logits, wanted[:, -3:]) < 1e-4


def test_the_filter_is_transformers_with_delta_zeroed(pair, ids, monkeypatch, relative_rms):
    peer, lm = pair
    with torch.no_grad():
        plain = peer(ids).logits
        filtered_by_hand(monkeypatch, peer, lm.sidecar, 64)
        wanted = peer(ids).logits
    assert relative_rms(wanted, plain) > 1e-2
    for chunk in (None, 21):  # the last of these pieces is one token
        out = lm.prefill(ids, logits_to_keep=0, chunk=chunk)
        assert out.plan.method == "filter" and relative_rms(out.logits, wanted) < 1e-4


@torch.no_grad()
def test_attached_in_memory_equals_loaded(pair, ids, relative_rms):
    peer, lm = pair
    wanted = lm.prefill(ids, logits_to_keep=0).logits
    tokens = [list(lm.generate(row, 20)) for row in ids]
    with attach(peer, lm.sidecar) as attached:
        assert relative_rms(peer(ids).logits, wanted) < 1e-4 and attached.plan == Plan("filter", 64)
        found = peer.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert found[:, 64:].tolist() == tokens


def test_rows_of_unequal_length_and_states(pair, ids, relative_rms):
    _, lm = pair
    short = ids[:1, 24:]
    out = lm.prefill([short[0], ids[1]], logits_to_keep=2)
    assert [plan.length for plan in out.plan] == [40, 64]
    assert relative_rms(out.logits[0], lm.prefill(short, logits_to_keep=2).logits[0]) < 1e-4
    assert out.positions.tolist() == [[38, 39], [62, 63]]
    state, token = out.state.clone(), torch.tensor([7, 8])
    after, _ = lm.step(token, out.state)
    again, _ = lm.step(token[1:], state.rows([1]))
    assert relative_rms(again[0], after[1]) < 1e-4 and state.length.tolist() == [40, 64]
    assert out.state.length.tolist() == [41, 65]
    batch = list(lm.generate([short[0], ids[1]], 12))
    assert [row[1] for row in batch] == list(lm.generate(ids[1], 12))
    assert [row[0] for row in batch] == list(lm.generate(short[0], 12))


def test_a_prompt_in_pieces_has_one_length(pair, ids, relative_rms):
    _, lm = pair
    wanted = lm.prefill(ids).logits
    first = lm.prefill(ids[:, :30], total_length=64)
    with pytest.raises(ValueError, match="not complete"):
        lm.step(torch.tensor([1, 2]), first.state)
    out = lm.prefill(ids[:, 30:], state=first.state)
    assert relative_rms(out.logits, wanted) < 1e-4 and first.state.length.tolist() == [30, 30]


def test_what_a_hybrid_cannot_do_is_refused(pair, ids, tmp_path):
    peer, lm = pair
    with pytest.raises(ValueError, match="cannot be decimated"):
        attach(peer, lm.sidecar, method="decimate")
    with pytest.raises(SidecarError, match="no decimation"):
        lm.prefill(ids, method="both")
    decimating = lm.with_sidecar(make_sidecar(lm))
    with pytest.raises(ValueError, match="cannot be decimated"):
        decimating.prefill(ids)
    with pytest.raises(ValueError, match="finite total_length"):
        lm.prefill(ids, total_length=float("inf"))
    with pytest.raises(ValueError, match="cannot be saved"):
        lm.load_state(tmp_path / "state")
    wrong = {**lm.sidecar.metadata, "model_fingerprint": "0" * 64}
    with pytest.raises(SidecarError, match="model_fingerprint"):
        attach(peer, replace(lm.sidecar, metadata=wrong))
    with pytest.raises(SidecarError, match="model_fingerprint"):
        load(lm.source.folder, replace(lm.sidecar, metadata=wrong))


@pytest.mark.parametrize("damage", ["missing", "extra", "nan", "quantised"])
def test_a_damaged_checkpoint_is_refused_by_the_tensors_name(pair, tmp_path, damage, caplog):
    folder = tmp_path / "copy"
    shutil.copytree(pair[1].source.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("A_log"))
    message = re.escape(name)
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors["model.lora"], message = torch.ones(2), "model.lora"
    elif damage == "nan":
        tensors[name] = tensors[name] * torch.nan
    else:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"], message = {"quant_method": "gptq", "bits": 4}, "gptq"
        (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if damage == "extra":
        load(folder)
        assert "does not use model.lora" in caplog.text
        return
    with pytest.raises(CheckpointError, match=message):
        load(folder)
