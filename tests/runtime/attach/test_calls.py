"""How attached models are called: threads, masks, keywords, gradients, copies. The model's answer, or an error."""

from __future__ import annotations

import io
import math
from concurrent.futures import ThreadPoolExecutor
from inspect import signature

import pytest
import torch

from longscan.runtime import attach, load

from ...checkpoints import make_sidecar
from .models import FAMILIES, HYBRIDS, build, cache_of

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 64, (3, 48), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A transformers Mamba, and the same checkpoint in the runtime with a sidecar."""
    peer, folder = build("mamba"), tmp_path_factory.mktemp("mamba")
    peer.save_pretrained(folder)
    return peer, load(folder, make_sidecar(load(folder)))


def call(model, ids, out=None, **more):
    """One call with a cache; `out` is the last call's output."""
    cache = {} if out is None else cache_of(model, out)
    return model(ids, use_cache=True, **cache, **more)


def places(model, mask, last):
    """position_ids of the last columns, for models that have them: a token's place in its own row."""
    if "position_ids" not in signature(model.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -last:]}


# -- caches --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_what_generate_takes_with_a_cache(model, ids, relative_rms):
    """Of a hybrid the whole text, what the cache holds included; of a pure Mamba what comes next (docs/attach.md)."""
    hybrid = any(model.config.model_type.startswith(name) for name in HYBRIDS)

    def first(text, **cache):
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "return_dict_in_generate": True}
        return model.generate(text, max_new_tokens=2, output_logits=True, **options, **cache).logits[0]

    with attach(model):
        wanted = first(ids)
        text = ids if hybrid else ids[:, 32:]
        assert relative_rms(first(text, **cache_of(model, call(model, ids[:, :32]))), wanted) < 1e-4
        if not hybrid:  # read twice
            assert relative_rms(first(ids, **cache_of(model, call(model, ids[:, :32]))), wanted) > 1e-3


# -- threads -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba", "bamba"])
def test_threads_share_an_attached_model(name, tmp_path, ids, relative_rms):
    peer = build(name)
    peer.save_pretrained(tmp_path)
    method = "filter" if name == "bamba" else "both"
    prompts = [ids[k % 3 : k % 3 + 1, : 20 + k] for k in range(12)]

    def read(prompt):
        with torch.no_grad():  # a thread begins with gradients on
            out, after = call(peer, prompt), torch.ones(1, prompt.shape[1] + 1)
            return call(peer, prompt[:, :1], out, **places(peer, after, 1)).logits, attached.plan

    with attach(peer, make_sidecar(load(tmp_path)), method=method) as attached:
        wanted = [read(prompt) for prompt in prompts]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(read, prompts * 8))
        assert attached.plan == wanted[-1][1]  # this thread's own
    for k, (logits, plan) in enumerate(found):
        right, right_plan = wanted[k % len(prompts)]
        assert plan == right_plan and relative_rms(logits, right) < 1e-5


@torch.no_grad()
def test_threads_share_a_loaded_hybrid(tmp_path, ids, relative_rms):
    build("bamba").save_pretrained(tmp_path)
    plain = load(tmp_path)
    filtered = plain.with_sidecar(make_sidecar(plain))  # the two share one model in memory

    def read(k):
        lm, prompt = (plain, filtered)[k % 2], ids[:, : 24 + k]
        method = ("none", "filter")[k % 2]
        out = lm.prefill(prompt, method=method)
        return lm.step(prompt[:, 0], out.state)[0]

    wanted = [read(k) for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, list(range(8)) * 6))
    for k, logits in enumerate(found):
        assert relative_rms(logits, wanted[k % 8]) < 1e-5


# -- masks ---------------------------------------------------------------------------------------------------------


def rows_of(ids, lengths, side):
    """Rows cut to lengths, padded with token 5 on a side -> ids, mask."""
    L = max(lengths)
    batch, mask = torch.full((len(lengths), L), 5), torch.zeros(len(lengths), L, dtype=torch.int64)
    for b, n in enumerate(lengths):
        at = slice(L - n, L) if side == "left" else slice(0, n)
        batch[b, at], mask[b, at] = ids[b, :n], 1
    return batch, mask


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, ids, side, relative_rms):
    """Prompts of 40, 23 and 2 tokens (fewer than the convolution is wide), then pieces of 3, 1 and 5, then a token."""
    lengths, more = (40, 23, 2), (3, 1, 5)
    mask = torch.zeros(3, 0, dtype=torch.int64)
    with attach(model):
        wanted = [model(ids[b : b + 1, : lengths[b] + more[b] + 1]).logits[0] for b in range(3)]
        out = None
        for begin, count in (((0, 0, 0), lengths), (lengths, more)):
            piece, new = rows_of(torch.stack([row.roll(-n) for row, n in zip(ids, begin)]), count, side)
            mask = torch.cat([mask, new], 1)
            out = call(model, piece, out, attention_mask=mask, **places(model, mask, piece.shape[1]))
            for b in range(3):
                right = wanted[b][begin[b] : begin[b] + count[b]]
                assert relative_rms(out.logits[b][new[b] > 0], right) < 1e-4
        token = torch.stack([ids[b, lengths[b] + more[b]] for b in range(3)])[:, None]
        mask = torch.cat([mask, torch.ones_like(token)], 1)
        out = call(model, token, out, attention_mask=mask, **places(model, mask, 1))
    assert relative_rms(out.logits[:, 0], torch.stack([row[-1] for row in wanted])) < 1e-4


@torch.no_grad()
def test_a_step_may_leave_rows_out(model, ids, relative_rms):
    """Scoring continuations of unequal length token by token: where a row has ended, its mask is 0."""
    mask = torch.ones(3, 20, dtype=torch.int64)
    with attach(model):
        wanted = model(torch.cat([ids[:1, :20], ids[:1, 21:22]], 1)).logits[0, -1]
        out = call(model, ids[:, :20])
        for k, here in ((20, [0, 1, 1]), (21, [1, 1, 1])):
            mask = torch.cat([mask, torch.tensor(here)[:, None]], 1)
            out = call(model, ids[:, k : k + 1], out, attention_mask=mask, **places(model, mask, 1))
    assert relative_rms(out.logits[0, 0], wanted) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("method", ["none", "filter"])
def test_padding_on_the_right_is_the_runtimes(pair, ids, method, relative_rms):
    """Each row has its own S, plan and g."""
    peer, lm = pair
    batch, mask = rows_of(ids, (40, 23, 12), "right")
    with attach(peer, lm.sidecar, method=method) as attached:
        found = peer(batch, attention_mask=mask).logits
        assert attached.positions[1].tolist() == [*range(23), *[-1] * 17]
    whole = lm.prefill(batch, attention_mask=mask, method=method, logits_to_keep=0)
    assert whole.positions.tolist() == attached.positions.tolist()
    for b, n in enumerate((40, 23, 12)):
        alone = lm.prefill(ids[b : b + 1, :n], method=method, logits_to_keep=0)
        assert relative_rms(found[b, :n], alone.logits[0]) < 1e-4
        assert relative_rms(whole.logits[b, :n], alone.logits[0]) < 1e-5


@torch.no_grad()
def test_masks_that_are_no_padding_are_refused(model, ids):
    mask = torch.ones(3, 48, dtype=torch.int64)
    with attach(model):
        with pytest.raises(ValueError, match="a hole in row 1"):
            model(ids, attention_mask=mask.index_put((torch.tensor(1), torch.tensor(20)), torch.tensor(0)))
        with pytest.raises(ValueError, match="padding mask"):
            model(ids, attention_mask=torch.ones(3, 1, 48, 48).tril().bool())


# -- keywords ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_keyword_that_is_not_understood_is_refused(model, ids):
    mixer = next(module for module in model.modules() if hasattr(module, "A_log"))
    hidden = torch.zeros(1, 4, mixer.in_proj.weight.shape[1])
    with attach(model):
        with pytest.raises(ValueError, match="called with a_new_cache, which attach does not understand"):
            mixer(hidden, a_new_cache=object())
        assert mixer(hidden, a_new_cache=None).shape == hidden.shape
        with pytest.raises(ValueError, match="packed sequences"):
            model(ids, seq_idx=torch.zeros_like(ids, dtype=torch.int32))


@torch.no_grad()
@pytest.mark.parametrize("name", ["cache", "cache_params"])
def test_the_cache_is_taken_by_either_name(ids, name, relative_rms):
    """transformers 5.24 says cache= where 5.23 said cache_params=; a mixer called by the other still has its state."""
    model = build("mamba")
    wanted = model(ids).logits
    with attach(model):
        out = call(model, ids[:, :-1])
        (cache,) = cache_of(model, out).values()
        mixers = [module for module in model.modules() if hasattr(module, "A_log")]
        for mixer in mixers:  # as a library would that uses this name
            own = mixer.forward
            mixer.forward = lambda hidden, own=own, **_: own(hidden, **{name: cache})
        found = call(model, ids[:, -1:], out).logits
        for mixer in mixers:
            mixer.forward = mixer.forward.__defaults__[0]
    assert relative_rms(found[:, 0], wanted[:, -1]) < 1e-4


# -- gradients and copies ------------------------------------------------------------------------------------------


def test_a_gradient_is_refused_and_the_forward_pass_is_not(model, ids):
    with attach(model):
        out = model(ids).logits  # no torch.no_grad(): common, and harmless
        with pytest.raises(ValueError, match="gives no gradients; detach"):
            out.sum().backward()
    frozen = model.requires_grad_(False)
    try:
        with attach(frozen):
            assert not frozen(ids).logits.requires_grad
    finally:
        model.requires_grad_(True)
    assert model(ids).logits.sum().backward() is None  # detached: its own again
    model.zero_grad()


@torch.no_grad()
def test_an_attached_model_is_not_pickled(model):
    with attach(model), pytest.raises(ValueError, match="detach"):
        torch.save(model, io.BytesIO())
    with attach(model), pytest.raises(ValueError, match="detach"):
        torch.save(next(module for module in model.modules() if hasattr(module, "A_log")), io.BytesIO())
    torch.save(model.state_dict(), io.BytesIO())


@torch.no_grad()
def test_a_cuda_graph_is_not_captured(model, ids, monkeypatch):
    for asked in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, asked, lambda: True)
    with attach(model), pytest.raises(ValueError, match="CUDA graph would freeze the filter"):
        model(ids)


def test_another_activation_is_refused():
    config = transformers.MambaConfig(vocab_size=8, hidden_size=8, state_size=4, num_hidden_layers=1, hidden_act="gelu")
    with pytest.raises(ValueError, match="gelu"):
        attach(transformers.MambaForCausalLM(config))


@torch.no_grad()
def test_what_forward_is_called_with_is_seen_past_hooks(pair, ids):
    """PEFT 0.18 calls its model's forward, not the model."""
    model, lm = pair
    before = signature(model.forward)
    with attach(model, lm.sidecar, method="decimate") as attached:
        assert signature(model.forward) == before  # which `generate` reads
        called = model(input_ids=ids, logits_to_keep=10).logits
        wanted = attached.positions
        assert torch.equal(model.forward(input_ids=ids, logits_to_keep=10).logits, called)
        assert torch.equal(attached.positions, wanted) and wanted[0, -10:].tolist() == [*range(38, 48)]
        with pytest.raises(ValueError, match="fewer logits than labels"):
            model.forward(input_ids=ids, labels=ids)
    assert "forward" not in vars(model)


def test_a_total_that_is_no_length_is_refused(pair):
    with attach(pair[0], pair[1].sidecar) as attached:
        for total in (math.nan, 0, 12.5, math.inf):
            with pytest.raises(ValueError, match="total_length"):
                attached.total_length = total
        assert attached.total_length is None


@pytest.mark.parametrize("name", ["mamba2", "bamba"])
@torch.no_grad()
def test_a_cache_that_others_went_on_filling_is_refused(name, ids):
    model = build(name)
    with attach(model):
        out = call(model, ids[:, :10])
    out = call(model, ids[:, 10:11], out)
    with attach(model), pytest.raises(ValueError, match="start with a new cache"):
        call(model, ids[:, 11:14], out)


@torch.no_grad()
def test_a_call_that_failed_leaves_nothing_for_the_next(ids, relative_rms):
    model = build("mamba2")
    wanted = model.backbone(ids).last_hidden_state
    mask = torch.ones_like(ids)
    mask[:, :20] = 0
    with attach(model):
        with pytest.raises(IndexError):  # in the embedding, ahead of the first mixer
            model(torch.full_like(ids, 10**6), attention_mask=mask)
        assert relative_rms(model.backbone(ids).last_hidden_state, wanted) < 1e-4


def test_a_forward_that_is_not_the_librarys_is_refused_by_name():
    model = build("mamba2")
    mixers = [block.mixer for block in model.backbone.layers]

    class Halved(type(mixers[0])):
        def forward(self, *args, **kwargs):
            return 0.5 * super().forward(*args, **kwargs)

    for mixer in mixers:
        mixer.__class__ = Halved
    with pytest.raises(ValueError, match="Halved has a forward of its own"):
        attach(model)
