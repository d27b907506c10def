"""Rotary positions stretched by a factor, held against transformers' own model with YaRN in its config."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from longscan.calibrate.sidecars import sidecar_from_bands
from longscan.runtime import Plan, Sidecar, SidecarError, attach, load
from longscan.runtime.sidecar.plan import Yarn
from longscan.runtime.sidecar.sidecar import Band

from .models import build, cache_of
from .test_hybrids import filtered_by_hand

transformers = pytest.importorskip("transformers")
L = 16  # the training length
ROTARY = ["zamba2", "bamba", "falcon_h1", "granite"]


def stretching(lm, factors, method="none", g=0.0):
    """A sidecar with one band, and factors on rotary positions by length."""
    tensors, channels = {}, lm.weights.channels
    if method == "filter":
        table = torch.full((1, len(lm.weights.layers), channels), g)
        tensors = {"lengths": torch.tensor([max(factors)]), "thresholds": table}
    return sidecar_from_bands(lm, L, [(Band(tuple(factors), method), tensors)], rotary=factors)


def with_yarn(model, factor):
    """The same weights in a model whose own config asks for YaRN."""
    config = copy.deepcopy(model.config)
    config.rope_parameters |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": L}
    other = transformers.AutoModelForCausalLM.from_config(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 64, (2, 64), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", params=ROTARY)
def pair(request, tmp_path_factory):
    """A model with rotary attention in memory, and loaded."""
    more = {"position_embedding_type": "rope"} if request.param == "granite" else {}
    model, folder = build(request.param, **more), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, load(folder)


@torch.no_grad()
def test_a_factor_is_transformers_own_and_is_undone(pair, ids, relative_rms):
    model, lm = pair
    peer = with_yarn(model, 4.0)
    plain, wanted = model(ids).logits, peer(ids).logits
    assert relative_rms(wanted, plain) > 1e-3
    with attach(model, stretching(lm, {64: 4.0})) as attached:
        assert relative_rms(model(ids).logits, wanted) < 1e-5
        assert attached.plan == Plan("none", 64, rotary=Yarn(4.0, L))
        assert relative_rms(model.base_model(ids)[0], peer.base_model(ids)[0]) < 1e-5  # the stack alone
    assert torch.equal(model(ids).logits, plain)


@torch.no_grad()
def test_with_the_filter(pair, ids, monkeypatch, relative_rms):
    model, lm = pair
    peer, side = with_yarn(model, 4.0), stretching(lm, {64: 4.0}, "filter", 0.01)
    filtered_by_hand(monkeypatch, peer, side, 64)
    wanted = peer(ids).logits
    monkeypatch.undo()
    loaded = lm.with_sidecar(side)
    for chunk in (None, 21):
        out = loaded.prefill(ids, logits_to_keep=0, chunk=chunk)
        assert relative_rms(out.logits, wanted) < 1e-4
    alone = loaded.prefill(ids, logits_to_keep=0, method="filter")  # a forced method is that method alone
    assert alone.plan.rotary is None and relative_rms(alone.logits, wanted) > 1e-3


@torch.no_grad()
def test_the_factor_travels_with_the_cache(pair, ids, relative_rms):
    """Keys are rotated once: what follows a prompt, tokens or more text, is rotated as the prompt was."""
    model, lm = pair
    side = stretching(lm, {32: 2.0, 64: 4.0})
    peer = with_yarn(model, 2.0)
    with attach(model, side):
        for first, like in ((32, peer), (L, model)):
            out = model(ids[:, :first], use_cache=True)
            found = [out.logits]
            for start, stop in ((first, first + 1), (first + 1, 60), (60, 61)):
                place = torch.arange(start, stop).expand(2, -1)
                out = model(ids[:, start:stop], use_cache=True, position_ids=place, **cache_of(model, out))
                found.append(out.logits)
            got = torch.cat(found, 1)
            if like is peer:
                wanted = got
        stack = model.base_model  # called alone, with a cache of its own
        out = stack(ids[:, :32], use_cache=True)
        alone = stack(ids[:, 32:60], position_ids=torch.arange(32, 60).expand(2, -1), **cache_of(stack, out))[0]
        tokens = model.generate(ids[:, :32], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert relative_rms(wanted, peer(ids[:, :61]).logits) < 1e-4
    assert relative_rms(alone, peer.base_model(ids[:, :60])[0][:, 32:]) < 1e-4
    assert relative_rms(got, model(ids[:, :61]).logits) < 1e-4
    own = peer.generate(ids[:, :32], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert tokens.tolist() == own.tolist()


@torch.no_grad()
def test_rows_have_factors_of_their_own(pair, ids, relative_rms):
    model, lm = pair
    loaded = lm.with_sidecar(stretching(lm, {32: 2.0, 64: 4.0}))
    rows = [ids[0, :12], ids[0, :32], ids[1]]
    out = loaded.prefill(rows)
    assert [plan.rotary and plan.rotary.factor for plan in out.plan] == [None, 2.0, 4.0]
    after, _ = loaded.step(torch.tensor([1, 2, 3]), out.state)
    for b, (row, like) in enumerate(zip(rows, (model, with_yarn(model, 2.0), with_yarn(model, 4.0)))):
        wanted = like(torch.cat([row, torch.tensor([b + 1])])[None]).logits[0]
        assert relative_rms(out.logits[b, 0], wanted[-2]) < 1e-4
        assert relative_rms(after[b], wanted[-1]) < 1e-4


def test_threads_share_no_factor(pair, ids, relative_rms):
    _, lm = pair
    models = [lm, *(lm.with_sidecar(stretching(lm, {64: factor})) for factor in (2.0, 4.0))]
    wanted = [one.prefill(ids).logits for one in models]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: models[k % 3].prefill(ids).logits, range(24)))
    assert all(relative_rms(logits, wanted[k % 3]) < 1e-6 for k, logits in enumerate(found))
    assert relative_rms(wanted[1], wanted[2]) > 1e-4 < relative_rms(wanted[0], wanted[1])


def test_a_call_that_fails_early_leaves_nothing(pair, ids):
    """A layer, or the stack, called by itself afterwards begins anew."""
    model, lm = pair
    mixer = next(module for module in model.modules() if hasattr(module, "A_log"))
    hidden = torch.randn(1, 20, model.config.hidden_size)

    def fail(*_):
        raise MemoryError

    with torch.no_grad(), attach(model, stretching(lm, {64: 4.0}, "filter", 0.5)) as attached:
        layer = next(m for m in model.modules() if type(m).__name__.endswith("DecoderLayer"))
        handle = layer.register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            model(ids)
        handle.remove()
        mixer(hidden)
        assert attached.plan.length == 20
        with pytest.raises(IndexError):
            model(ids + 100, attention_mask=torch.ones_like(ids).tril(63 - 20))
        model.base_model(ids)
        assert attached.plan.length == 64


@pytest.mark.parametrize("name", ["mamba", "granite", "jamba", "nemotron_h"])
def test_a_model_without_rotary_positions_refuses_factors(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    lm = load(tmp_path)
    side = stretching(lm, {64: 4.0})
    for ask in (lambda: attach(model, side), lambda: load(tmp_path, side)):
        with pytest.raises(SidecarError, match=r"^policy.rotary: found factors on rotary positions, expected none"):
            ask()
    assert not lm.rotary


def test_positions_stretched_by_the_model_itself_are_left_alone(pair):
    model, lm = pair
    with pytest.raises(SidecarError, match="its own config stretches them already"):
        attach(with_yarn(model, 2.0), stretching(lm, {64: 4.0}))


def test_in_the_sidecar(pair, tmp_path):
    _, lm = pair
    stretching(lm, {32: 2.0, 128: 8.0}).write(tmp_path / "s.safetensors")
    side = Sidecar.read(tmp_path / "s.safetensors")
    assert side.rotary == {32: 2.0, 128: 8.0}
    factors = [side.plan(n).rotary for n in (16, 23, 32, 64, 128, 4096)]
    assert factors[0] is None and factors[-1] == factors[-2] == Yarn(8.0, L) and factors[2] == Yarn(2.0, L)
    assert [round(yarn.factor, 2) for yarn in factors[1:4]] == [1.44, 2.0, 4.0]
    assert "rotary" not in stretching(lm, {32: 1.0}).metadata["policy"]  # as before there were factors
    policy = side.metadata["policy"]
    for wrong in ('"32":0.5', '"33":2.0', '"32":true', '"32":"2"'):
        with pytest.raises(SidecarError, match=r"^policy\.rotary: found"):
            replace(side, metadata={**side.metadata, "policy": policy.replace('"32":2.0', wrong)}).write(tmp_path / "t")
