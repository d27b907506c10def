"""transformers' models, attached: against their own logits, and against the same checkpoint in our runtime."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from inspect import signature

import pytest
import torch

from longscan.runtime import Sidecar, SidecarError, attach, detach, load

from ...checkpoints import make_sidecar
from .models import FAMILIES, PURE, build, cache_of, lively

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 64, (2, 64), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return build(request.param)


@pytest.fixture(scope="module", params=PURE)
def pair(request, tmp_path_factory):
    """A transformers model, and the same checkpoint in the runtime with a sidecar."""
    peer = build(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    peer.save_pretrained(folder)
    return peer, load(folder, with_scales(make_sidecar(load(folder))))


def with_scales(sidecar: Sidecar) -> Sidecar:
    """The same with a factor on delta between 1/2 and 1."""
    g = torch.Generator().manual_seed(3)
    scales = 0.5 + torch.rand(sidecar.tensors["bands.0.thresholds"].shape, generator=g) / 2
    return replace(sidecar, tensors={**sidecar.tensors, "bands.0.scales": scales})


@torch.no_grad()
def test_plain_logits_are_the_models_own(model, ids, relative_rms):
    wanted = model(ids).logits
    with attach(model):
        assert relative_rms(model(ids).logits, wanted) < 3e-6
        assert relative_rms(model(ids, use_cache=False).logits, wanted) < 3e-6


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mamba2"])
def test_plain_generation_is_the_models_own(name, ids):
    """But for the one whose delta is limited: transformers' own steps leave the limit out."""
    model = build(name)
    greedy = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    wanted = model.generate(ids, **greedy)
    with attach(model):
        assert torch.equal(model.generate(ids, **greedy), wanted)


@torch.no_grad()
def test_detach_gives_everything_back(model, ids):
    before = model(ids).logits
    forwards = {name: module.forward for name, module in model.named_modules()}
    attached = attach(model)
    assert model(ids).logits.shape == before.shape
    detach(model)
    attached.detach()  # a second time changes nothing
    assert {name: module.forward for name, module in model.named_modules()} == forwards
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())
    assert not model._forward_pre_hooks and not any("longscan" in name for name in vars(model))
    assert torch.equal(model(ids).logits, before)


@torch.no_grad()
def test_chunked_prefill_goes_on_from_the_state(model, ids, relative_rms):
    wanted = model(ids).logits
    places = torch.arange(64).expand(ids.shape)
    with attach(model):
        out = model(ids[:, :19], use_cache=True)
        cache, found = cache_of(model, out), [out.logits]
        for piece, at in zip(ids[:, 19:].split(13, dim=1), places[:, 19:].split(13, dim=1)):
            placed = "position_ids" in signature(model.forward).parameters  # Bamba's default starts at 0 in every call
            found.append(model(piece, use_cache=True, **cache, **({"position_ids": at} if placed else {})).logits)
    assert relative_rms(torch.cat(found, 1), wanted) < 1e-4


@torch.no_grad()
def test_transformers_alone_loses_the_state_between_chunks(ids, relative_rms):
    """What the test before guards against; when this fails, transformers has been mended."""
    model = build("mamba")
    cache = cache_of(model, model(ids[:, :19], use_cache=True))
    alone = model(ids[:, 19:], use_cache=True, **cache).logits
    assert relative_rms(alone, model(ids).logits[:, 19:]) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("method", ["none", "filter", "decimate", "both", "scale"])
def test_every_method_equals_the_runtime(pair, ids, method, relative_rms):
    peer, lm = pair
    wanted = lm.prefill(ids, method=method, logits_to_keep=0)
    with attach(peer, lm.sidecar, method=method) as attached:
        found = peer(ids).logits
        assert attached.plan == wanted.plan
        assert torch.equal(attached.positions, wanted.positions)
    assert found.shape == wanted.logits.shape and relative_rms(found, wanted.logits) < 1e-4
    if method != "none":
        assert relative_rms(found[:, -1], peer(ids).logits[:, -1]) > 1e-3  # the method does something


@torch.no_grad()
def test_logits_to_keep_protects_tokens(pair, ids, relative_rms):
    peer, lm = pair
    wanted = lm.prefill(ids, method="decimate", logits_to_keep=9)
    with attach(peer, lm.sidecar, method="decimate") as attached:
        found = peer(ids, logits_to_keep=9).logits
        assert attached.positions[:, -9:].tolist() == wanted.positions.tolist()
    assert relative_rms(found, wanted.logits) < 1e-4


@pytest.mark.parametrize("filter_decode", [True, False, None])
@pytest.mark.parametrize("method", ["none", "filter", "both", "scale"])
def test_generate_is_the_runtimes(pair, ids, method, filter_decode):
    peer, lm = pair
    side = lm.sidecar
    if filter_decode is None:  # the sidecar says no
        policy = {**json.loads(side.metadata["policy"]), "filter_decode": False}
        side = Sidecar(side.tensors, {**side.metadata, "policy": json.dumps(policy)})
    ours = load(lm.source.folder, side, filter_decode=bool(filter_decode))
    wanted = [list(ours.generate(row, 24, method=method)) for row in ids]
    with attach(peer, side, method=method, filter_decode=filter_decode):
        found = peer.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert found[:, 64:].tolist() == wanted


@torch.no_grad()
def test_rows_of_unequal_length_have_their_own_plans(pair, ids, relative_rms):
    peer, lm = pair
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    wanted = lm.prefill(ids, method="filter", attention_mask=mask)
    with attach(peer, lm.sidecar, method="filter") as attached:
        out = peer(ids, attention_mask=mask, use_cache=True)
        assert [plan.length for plan in attached.plan] == [24, 64]
        token = torch.tensor([5, 6])
        step = peer(token[:, None], **cache_of(peer, out), use_cache=True)
    assert relative_rms(out.logits[:, -1], wanted.logits[:, -1]) < 1e-4
    assert relative_rms(step.logits[:, -1], lm.step(token, wanted.state)[0]) < 1e-4


def test_generate_continues_padded_rows(pair, ids):
    peer, lm = pair
    mask = torch.ones_like(ids)
    mask[0, :40] = 0
    wanted = list(lm.generate([ids[0, 40:], ids[1]], 16, method="filter"))
    with attach(peer, lm.sidecar, method="filter"):
        found = peer.generate(
            ids, attention_mask=mask, max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert found[:, 64:].T.tolist() == wanted


@torch.no_grad()
def test_a_prompt_in_several_calls_can_name_its_length(pair, ids, relative_rms):
    peer, lm = pair
    first = lm.prefill(ids[:, :30], method="filter", total_length=64)
    wanted = lm.prefill(ids[:, 30:], method="filter", state=first.state)
    with attach(peer, lm.sidecar, method="filter") as attached:
        attached.total_length = 64
        cache = cache_of(peer, peer(ids[:, :30], use_cache=True))
        copied = copy.deepcopy(cache)  # a prefix can be gone on from twice
        for one in (cache, copied):
            found = peer(ids[:, 30:], **one, use_cache=True).logits
            assert relative_rms(found[:, -1], wanted.logits[:, -1]) < 1e-4
        assert attached.plan.length == 64


@torch.no_grad()
def test_half_precision_is_known_by_its_checkpoint(pair, ids):
    _, lm = pair
    folder = lm.source.folder
    half = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with attach(half, lm.sidecar, method="filter"):
        assert half(ids).logits.isfinite().all()
    half.backbone.layers[0].mixer.A_log += 1
    with pytest.raises(SidecarError, match="model_fingerprint"):
        attach(half, lm.sidecar)


def test_the_runtime_alone_imports_no_other_library():
    code = "import sys, longscan.runtime; sys.exit('transformers' in sys.modules or 'mamba_ssm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_wrong_sidecars_models_and_calls_are_refused(pair, ids, monkeypatch):
    peer, lm = pair
    other = lively(copy.deepcopy(peer), seed=5)
    with pytest.raises(SidecarError, match="model_fingerprint"):
        attach(other, lm.sidecar)
    with pytest.raises(ValueError, match="does not know Linear"):
        attach(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="unknown method 'best'"):
        attach(peer, method="best")
    with pytest.raises(ValueError, match="needs a sidecar"):
        attach(peer, method="filter")
    with pytest.raises(ValueError, match="not attached"):
        detach(peer)
    offloaded = copy.deepcopy(peer)
    offloaded.backbone.layers[1].mixer.forward = offloaded.backbone.layers[1].mixer.forward  # as accelerate does
    with pytest.raises(ValueError, match="another library runs this model's Mamba layers"):
        attach(offloaded)
    training = copy.deepcopy(peer).train()
    with attach(training), pytest.raises(ValueError, match="for inference"):
        training(ids)
    monkeypatch.delattr(transformers.cache_utils.Cache, "get_recurrent_state")
    with pytest.raises(ValueError, match="older caches"):
        attach(peer)
    monkeypatch.undo()
    with torch.no_grad():
        cache = cache_of(peer, peer(ids, use_cache=True))
    with attach(peer, lm.sidecar, method="both"):
        with pytest.raises(ValueError, match="attached already"):
            attach(peer)
        with pytest.raises(ValueError, match="not filled by the attached model"):
            peer(ids[:, :1], **cache)
        with pytest.raises(ValueError, match="a hole in row 0"):
            peer(ids, attention_mask=torch.ones_like(ids).index_fill(1, torch.tensor([30]), 0))
        with pytest.raises(ValueError, match="fewer logits than labels"):
            peer(ids, labels=ids)
        padded = torch.ones_like(ids)
        padded[0, :9] = 0
        with pytest.raises(ValueError, match="unequal length cannot be decimated"):
            peer(ids, attention_mask=padded)
        with pytest.raises(ValueError, match="neither copied nor pickled"):
            copy.deepcopy(peer)
