"""Mamba-2 and Falcon-Mamba: parity with transformers, and every way of reading against a float64 transcription."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from longscan.runtime import CheckpointError, load

from ..checkpoints import make_sidecar, random_mamba2_tensors, write_state_spaces

transformers = pytest.importorskip("transformers")

G, P, N = 2, 8, 8  # of the random Mamba-2 below
CONFIG = {"layer": "Mamba2", "headdim": P, "d_state": N, "ngroups": G}


def _lively(peer):
    """Random enough that a wrong epsilon, order or group would show."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return peer.eval()


def _mamba2(**more):
    sizes = dict(vocab_size=101, hidden_size=32, num_heads=8, head_dim=8, state_size=16, num_hidden_layers=3)
    return transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**{**sizes, "n_groups": 2, **more}))


def _falcon(**more):
    sizes = dict(vocab_size=101, hidden_size=33, state_size=8, num_hidden_layers=3)
    return transformers.FalconMambaForCausalLM(transformers.FalconMambaConfig(**sizes, **more))


PEERS = {
    "mamba2": lambda: _mamba2(),
    "mamba2-one-group": lambda: _mamba2(n_groups=1, tie_word_embeddings=True, use_bias=True),
    "mamba2-limits": lambda: _mamba2(time_step_limit=(0.01, 0.5), use_conv_bias=False, layer_norm_epsilon=1e-3),
    "falcon": lambda: _falcon(tie_word_embeddings=False, mixer_rms_eps=1e-3),
    "falcon-bias": lambda: _falcon(use_bias=True, use_conv_bias=False),
}


@pytest.mark.parametrize("name", PEERS)
def test_logits_agree_with_transformers(tmp_path, name, relative_rms):
    torch.manual_seed(0)
    peer = _lively(PEERS[name]())
    peer.save_pretrained(tmp_path)
    ids = torch.randint(0, 101, (2, 77))
    with torch.no_grad():
        wanted = peer(ids).logits
    lm = load(tmp_path)
    assert relative_rms(lm.prefill(ids, logits_to_keep=0).logits, wanted) < 1e-4
    state = lm.new_state(2)
    for t in range(20):
        logits, state = lm.step(ids[:, t], state)
        assert relative_rms(logits, wanted[:, t]) < 1e-4


def _write(folder, seed=0, **ssm_cfg):
    D_a_channel = bool(ssm_cfg.get("D_has_hdim"))
    tensors = random_mamba2_tensors(N=N, P=P, G=G, seed=seed, D_a_channel=D_a_channel)
    if ssm_cfg.get("rmsnorm") is False:
        tensors = {k: v for k, v in tensors.items() if not k.endswith("mixer.norm.weight")}
    return write_state_spaces(folder, tensors, ssm_cfg={**CONFIG, **ssm_cfg})


def transcription(lm, ids, g=None, decimate=None, weight=None, r=1):
    """Mamba-2 by the book, float64, one sequence (L,): logits of all tokens present at the end, and their positions."""
    w, about = lm.weights, lm.config.mamba2
    h = w.embedding[ids].double()
    positions = torch.arange(len(ids))

    def rms(x, epsilon=1e-5):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)

    for i, (layer, before) in enumerate(zip(w.layers, w.norms)):
        E, H = layer.out_proj.weight.shape[1], layer.dt_bias.shape[0]
        normed = rms(h) * before.weight.double()
        z, xBC, dt = (normed @ layer.in_proj.weight.double().T).split([E, E + 2 * G * N, H], -1)
        padded, taps = F.pad(xBC, (0, 0, 3, 0)), layer.conv.double()
        xBC = F.silu(sum(padded[k : k + len(h)] * taps[:, k] for k in range(4)) + layer.conv_bias.double())
        x, B, C = xBC.split([E, G * N, G * N], -1)
        delta = F.softplus(dt + layer.dt_bias.double()).clamp(*about.delta_limit)
        if decimate and i in decimate:
            S = len(h)
            n = min(S - r, max(decimate[i], 20))
            score = (weight.double() * delta.square()).sum(-1).sqrt()
            best = sorted(range(S - r), key=lambda t: (-float(score[t]), t))[:n]
            keep = sorted(best) + list(range(S - r, S))
            x, z, B, C, delta, h, positions = (t[keep] for t in (x, z, B, C, delta, h, positions))
        if g is not None:
            delta = torch.where(delta > g[i].double(), delta, 0.0)
        y = torch.zeros(len(x), H, P).double()
        for head in range(H):
            state, group = torch.zeros(P, N).double(), head // (H // G)
            for t in range(len(x)):
                x_t, B_t = x[t].view(H, P)[head], B[t].view(G, N)[group]
                state = torch.exp(delta[t, head] * layer.A[head].double()) * state
                state = state + delta[t, head] * torch.outer(x_t, B_t)
                y[t, head] = state @ C[t].view(G, N)[group] + layer.D[head].double() * x_t
        y = y.flatten(1)
        if layer.gate.weight is None:
            y = y * F.silu(z)
        elif about.norm_before_gate:
            y = rms(y.view(-1, G, E // G)).flatten(1) * layer.gate.weight.double() * F.silu(z)
        else:
            y = rms((y * F.silu(z)).view(-1, G, E // G)).flatten(1) * layer.gate.weight.double()
        h = h + y @ layer.out_proj.weight.double().T
    return rms(h) * w.norm.double() @ w.head.double().T, positions


VARIANTS = {
    "published": {},
    "norm before gate": {"norm_before_gate": True},
    "no norm, D a channel": {"rmsnorm": False, "D_has_hdim": True},
    "limits": {"dt_limit": [0.01, 0.05]},
}


@pytest.mark.parametrize("method", ["none", "filter", "decimate", "both"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_methods_equal_the_transcription(tmp_path, ids, variant, method, relative_rms):
    plain = load(_write(tmp_path / "m", **VARIANTS[variant]))
    sidecar = make_sidecar(plain)
    lm = load(tmp_path / "m", sidecar)
    out = lm.prefill(ids, method=method, logits_to_keep=0)
    plan = sidecar.plan(64, method)
    assert out.plan == plan and plan.method == method
    lengths = plan.scan_lengths(3, 1)
    g = [sidecar.thresholds(i, lengths[i]) for i in range(3)] if method in ("filter", "both") else None
    for row in range(2):
        wanted, positions = transcription(lm, ids[row], g, plan.decimate, sidecar.score_weights(1, 64))
        assert out.positions[row].tolist() == positions.tolist()
        assert relative_rms(out.logits[row], wanted) < 1e-5
    if method != "none":  # the methods differ, or the comparison above says nothing
        assert relative_rms(out.logits[:, -1], lm.prefill(ids, method="none").logits[:, -1]) > 1e-3


@pytest.fixture(scope="module", params=["mamba2", "falcon"])
def family(request, tmp_path_factory):
    """A folder with a tiny model, without a sidecar and with one."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "mamba2":
        _write(folder)
    else:
        torch.manual_seed(0)
        _lively(_falcon()).save_pretrained(folder)
    plain = load(folder)
    return folder, plain, load(folder, make_sidecar(plain))


@pytest.mark.parametrize("method", ["none", "filter", "decimate", "both"])
def test_chunks_and_steps_are_one_prefill(family, ids, method, relative_rms):
    _, plain, lm = family
    whole = lm.prefill(ids, method=method, logits_to_keep=5)
    for chunk in (1, 7, 100):
        parts = lm.prefill(ids, method=method, logits_to_keep=5, chunk=chunk)
        assert relative_rms(parts.logits, whole.logits) < 1e-4
        assert relative_rms(parts.state.ssm, whole.state.ssm) < 1e-4
        assert torch.equal(parts.positions, whole.positions) and parts.plan == whole.plan
    if method == "none":
        state = plain.new_state(2)
        for t in range(ids.shape[1]):
            logits, state = plain.step(ids[:, t], state)
        assert relative_rms(logits, whole.logits[:, -1]) < 1e-4
        assert relative_rms(state.ssm, whole.state.ssm) < 1e-4


@pytest.mark.parametrize("method", ["none", "filter", "both"])
def test_rows_of_unequal_length_equal_single_rows(family, ids, method, relative_rms):
    _, _, lm = family
    prompts = [ids[0, :30], ids[1], ids[0, 5:]]
    together = lm.prefill(prompts, method=method)
    for b, prompt in enumerate(prompts):
        alone = lm.prefill(prompt[None], method=method)
        assert relative_rms(together.logits[b], alone.logits[0]) < 1e-4
        assert relative_rms(together.state.ssm[:, b], alone.state.ssm[:, 0]) < 1e-4


def test_generation_and_saved_states(family, ids, tmp_path):
    _, _, lm = family
    whole = list(lm.generate(ids[0].tolist(), max_new_tokens=12))
    assert len(whole) == 12
    lm.prefill(ids[:1]).state.save(tmp_path / "s.safetensors")
    state = lm.load_state(tmp_path / "s.safetensors")
    logits, state = lm.step(torch.tensor(whole[:1]), state)
    assert int(logits.argmax()) == whole[1]


def test_both_layouts_have_one_fingerprint(tmp_path):
    folder = _write(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.safetensors").symlink_to(folder / "model.safetensors")
    hf = {
        "model_type": "mamba2", "hidden_size": 24, "num_hidden_layers": 3, "vocab_size": config["vocab_size"],
        "num_heads": 6, "head_dim": P, "state_size": N, "n_groups": G, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "b" / "config.json").write_text(json.dumps(hf))
    ids = torch.arange(20)[None]
    one, other = load(folder), load(tmp_path / "b")
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.prefill(ids).logits, other.prefill(ids).logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ssm_cfg": {**CONFIG, "layer": "Mamba3"}}, "Mamba3"),
        ({"ssm_cfg": {**CONFIG, "d_ssm": 16}}, "d_ssm"),
        ({"ssm_cfg": {**CONFIG, "ngroups": 5}}, "do not fit together"),
        ({"ssm_cfg": {**CONFIG, "dt_limit": "all"}}, "limits delta"),
        ({"d_intermediate": 64}, "MLP"),
    ],
)
def test_what_is_not_ours_is_refused(tmp_path, change, said):
    folder = _write(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_other_hybrids_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "lfm2"}))
    with pytest.raises(CheckpointError, match="model_type 'lfm2'; this version reads"):
        load(tmp_path)
