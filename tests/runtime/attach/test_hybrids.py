"""Hybrids with attention behind LM's interface: against transformers with its delta set to zero."""

from __future__ import annotations

import copy
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
from longscan.runtime.families.weights import STEERING

from ...checkpoints import make_sidecar
from .models import HYBRIDS, build, cache_of, publish

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 64, (2, 64), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", params=HYBRIDS)
def pair(request, tmp_path_factory):
    """A transformers model, and the same checkpoint loaded with a sidecar that filters."""
    peer = build(request.param)
    folder = publish(peer, tmp_path_factory.mktemp(request.param))
    return peer, load(folder, without_decimation(make_sidecar(load(folder))))


def without_decimation(sidecar: Sidecar) -> Sidecar:
    """As a calibration of a hybrid makes it."""
    tensors = {name: t for name, t in sidecar.tensors.items() if name.split(".")[-1] in ("lengths", "thresholds")}
    policy = sidecar.metadata["policy"].replace('"method":"both"', '"method":"filter"')
    return replace(sidecar, tensors=tensors, metadata={**sidecar.metadata, "policy": policy})


def filtered_by_hand(monkeypatch, peer, sidecar, length):
    """Let transformers' own scan see delta = 0 where a layer's delta is not above g."""
    module = importlib.import_module(type(peer).__module__)
    name = "mamba2_chunk_scan" if hasattr(module, "mamba2_chunk_scan") else "mamba_selective_scan"
    scan, layers = getattr(module, name), iter(range(int(sidecar.metadata["n_layer"])))

    def filtered(delta):
        g = sidecar.thresholds(next(layers), length)
        return torch.where(delta > g, delta, torch.zeros(()))

    def mamba1(x, dt, A, B, C, *, delta_bias, delta_softplus, **rest):
        delta = filtered(F.softplus(dt.mT + delta_bias)).mT
        return scan(x, delta, A, B, C, delta_bias=None, delta_softplus=False, **rest)

    def mamba2(x, dt, A, B, C, *, dt_bias, dt_softplus, dt_limit, **rest):
        delta = filtered(F.softplus(dt + dt_bias).clamp(*dt_limit))
        return scan(x, delta, A, B, C, dt_bias=None, dt_softplus=False, dt_limit=(0.0, float("inf")), **rest)

    monkeypatch.setattr(module, name, mamba2 if name == "mamba2_chunk_scan" else mamba1)


def test_the_plain_model_is_transformers_own(pair, ids, relative_rms):
    peer, lm = pair
    with torch.no_grad():
        wanted = peer(ids).logits
    for chunk in (None, 23):
        out = lm.prefill(ids, method="none", logits_to_keep=0, chunk=chunk)
        assert relative_rms(out.logits, wanted) < 1e-4
        assert out.positions.tolist() == [list(range(64))] * 2 and out.plan == Plan("none", 64)
    assert relative_rms(lm.prefill(ids, method="none", logits_to_keep=3, chunk=2).logits, wanted[:, -3:]) < 1e-4


def test_float64_is_read_too(pair, ids, relative_rms):
    """Experts included, of which transformers' default product takes no float64."""
    _, lm = pair
    wide = load(lm.source.folder, lm.sidecar, dtype="float64").prefill(ids).logits
    assert relative_rms(lm.prefill(ids).logits, wide) < 1e-4


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


def test_a_state_of_another_kind_of_model_is_refused(pair, ids):
    hybrid, demo = pair[1], load("demo")
    theirs, ours = hybrid.prefill(ids[:1, :5]).state, demo.prefill(ids[:1, :5]).state
    one = ids[:1, 0]
    for lm, state in ((hybrid, ours), (demo, theirs)):
        with pytest.raises(ValueError, match=r"^the state is a .*; this model goes on from a "):
            lm.prefill(one[:, None], state=state)
        with pytest.raises(ValueError, match=r"^the state is a .*; this model goes on from a "):
            lm.step(one, state)


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
    for wrong in ({"chunk": 0}, {"logits_to_keep": -1}):
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f"^{name} is {value}; give"):
            lm.prefill(ids, **wrong)
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
    message = re.escape(name.removeprefix("backbone."))  # what Nemotron-H's checkpoints say, and transformers does not
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


@torch.no_grad()
def test_half_precision_is_known_by_its_checkpoint(pair, ids, tmp_path):
    """Weights in bfloat16 with what steers a layer in float32, as some makers store them."""
    peer, lm = pair
    folder = publish(copy.deepcopy(peer).to(torch.bfloat16), tmp_path / "mixed")
    stored = load_file(folder / "model.safetensors")
    wide = load_file(lm.source.folder / "model.safetensors")
    stored |= {name: t for name, t in wide.items() if name.endswith(STEERING)}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load(folder, lm.sidecar)
    assert loaded.fingerprint == lm.fingerprint
    assert torch.equal(loaded.weights.layers[0].A, lm.weights.layers[0].A)
    half = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with attach(half, lm.sidecar):
        assert half(ids).logits.isfinite().all()
    next(module for module in half.modules() if hasattr(module, "A_log")).A_log += 1
    with pytest.raises(SidecarError, match="model_fingerprint"):
        attach(half, lm.sidecar)


# -- Nemotron-H's and Zamba2's floor under delta, Falcon-H1's norm, Granite 4's members without Mamba --------


@torch.no_grad()
@pytest.mark.parametrize("name", ["nemotron_h", "zamba2"])
def test_delta_is_limited_as_its_maker_does(name, ids, tmp_path, monkeypatch, relative_rms):
    """transformers raises delta to time_step_min in prompts; its config.json says (0, inf), or nothing."""
    peer = build(name, time_step_min=0.001)
    lm = load(publish(peer, tmp_path))
    sidecar = without_decimation(make_sidecar(lm))
    raised = peer(ids).logits
    mixers = [module for module in peer.modules() if hasattr(module, "A_log")]
    assert all(mixer.time_step_limit == (0.001, float("inf")) for mixer in mixers)
    with attach(peer):
        found = peer(ids).logits
        stepped = torch.cat(list(one_by_one(peer, ids)), 1)
    for mixer in mixers:
        mixer.time_step_limit = (0.0, float("inf"))
    wanted = peer(ids).logits
    assert relative_rms(found, wanted) < 5e-6 < 1e-4 < relative_rms(found, raised)
    assert relative_rms(stepped, wanted) < 5e-6  # and so do steps, there as here
    assert relative_rms(torch.cat(list(one_by_one(peer, ids)), 1), wanted) < 5e-6
    filtered_by_hand(monkeypatch, peer, sidecar, 64)
    assert relative_rms(lm.with_sidecar(sidecar).prefill(ids, logits_to_keep=0).logits, peer(ids).logits) < 5e-6


def one_by_one(model, ids):
    """Logits of a prompt given token by token."""
    cache = {}
    for k in range(ids.shape[1]):
        out = model(ids[:, k : k + 1], use_cache=True, **cache)
        cache = cache_of(model, out)
        yield out.logits


@torch.no_grad()
@pytest.mark.parametrize("name", ["nemotron_h", "zamba2"])
@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.001, 0.1)])
def test_a_filtered_token_is_exactly_skipped(name, ids, limit, tmp_path):
    """delta is 0 after the clamp, not its lower limit: heads that filter every token hold no state at all."""
    peer = build(name, time_step_min=0.001, time_step_limit=limit)
    sidecar = without_decimation(make_sidecar(load(publish(peer, tmp_path)), share=1e9))
    with attach(peer, sidecar, method="filter"):
        out = peer(ids, use_cache=True)
        out = peer(ids[:, :1], use_cache=True, **cache_of(peer, out))
    (cache,) = cache_of(peer, out).values()
    state = cache.get_recurrent_state(0)  # (B, heads, P, N); every second head filters
    assert torch.equal(state[:, 1::2], torch.zeros_like(state[:, 1::2])) and (state[:, ::2] != 0).all()


@torch.no_grad()
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_falcon_h1_with_a_norm_behind_the_scan(ids, norm_before_gate, relative_rms):
    peer = build("falcon_h1", mamba_rms_norm=True, mamba_norm_before_gate=norm_before_gate)
    wanted = peer(ids).logits
    with attach(peer):
        assert relative_rms(peer(ids).logits, wanted) < 1e-6
        assert relative_rms(torch.cat(list(one_by_one(peer, ids)), 1), wanted) < 1e-6


def test_a_granite_of_attention_alone_is_refused(tmp_path):
    peer = build("granite", layer_types=["full_attention"] * 3)
    with pytest.raises(ValueError, match="GraniteMoeHybridForCausalLM has no Mamba layers"):
        attach(peer)
    with pytest.raises(CheckpointError, match="no Mamba layers"):
        load(publish(peer, tmp_path))


@pytest.mark.parametrize("filter_decode", [True, False])
def test_a_prompt_of_one_token_is_read_as_it_is_asked_for(pair, ids, filter_decode, relative_rms):
    plain = pair[1].with_sidecar(None)
    filters = plain.with_sidecar(without_decimation(make_sidecar(plain, share=8.0, filter_decode=filter_decode)))
    state, one = filters.prefill(ids[:1, :40], method="filter").state, ids[:1, 40:41]
    none = filters.prefill(one, state=state, method="none")
    assert none.plan == Plan("none", 41)
    assert torch.equal(none.logits, plain.prefill(one, state=state).logits)
    alone = filters.prefill(one, state=state, method="filter")
    beside = filters.prefill([one[0], ids[0, 40:42]], state=state.rows([0, 0]), method="filter")
    assert alone.plan.method == "filter" and alone.plan.length == beside.plan[0].length == 41
    assert relative_rms(alone.logits[0], beside.logits[0]) < 1e-4
    assert relative_rms(alone.logits, none.logits) > 1e-4


def test_rows_of_unequal_length_go_on_each_by_its_own(pair, ids):
    lm = pair[1]
    state = lm.prefill([ids[0, :30], ids[1, :20]], method="filter").state
    whole, pieces = (lm.prefill(ids[:, 30:54], state=state, method="filter", chunk=chunk) for chunk in (None, 8))
    assert [plan.length for plan in pieces.plan] == [54, 44]
    assert torch.equal(whole.logits, pieces.logits)
    lm.step(ids[:, 54], pieces.state)  # and the prompt is complete


def test_another_models_state_is_not_gone_on_from(pair, ids):
    lm = pair[1]
    other = copy.copy(lm)
    other.weights = copy.copy(lm.weights)
    other.weights.fingerprint = "0" * 64
    state = lm.prefill(ids).state
    with pytest.raises(ValueError, match="by another model"):
        other.step(ids[:, 0], state)
    half = lm.prefill(ids[:, :40], total_length=64).state
    with pytest.raises(ValueError, match="begun with another sidecar"):
        lm.with_sidecar(None).prefill(ids[:, 40:], state=half)
