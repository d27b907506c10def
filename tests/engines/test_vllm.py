"""vLLM's plug-in against our own filter: in a stand-in for vLLM, and in vLLM's own mixers where they import.

vLLM's kernels need a GPU, so that what they would be given is looked at: the scan of raw delta as the plug-in leaves it
must be the scan of raw delta as it came, filtered.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from copy import copy

import pytest
import torch

from longscan.engines import vllm as plugin
from longscan.engines.band import stored_layers
from longscan.kernels import selective_scan, ssd_scan
from longscan.runtime import CheckpointError, Sidecar, SidecarError, load
from longscan.runtime.checkpoint.source import BUNDLED

from ..checkpoints import make_sidecar
from . import vllm_stand_in

TOKENS = 200


class Stored:
    """A bundled model's checkpoint, and a sidecar for it with a g on every second channel."""

    def __init__(self, name, folder):
        self.name, self.path = name, folder / f"{name}.longscan.safetensors"
        self.layers = stored_layers(name)[0]
        self.side = make_sidecar(load(name))
        self.length = 4 * self.side.train_length
        self.side.write(self.path)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sidecars")
    return {name: Stored(name, folder) for name in ("demo", "demo-mamba2")}


@pytest.fixture(params=["demo", "demo-mamba2"])
def stored(request, both):
    return both[request.param]


@pytest.fixture
def stand_in(monkeypatch):
    """Put vLLM's stand-in where vLLM is looked for: stand_in(rank, ranks) -> its modules."""

    def put(rank=0, ranks=1):
        found = vllm_stand_in.modules(rank, ranks)
        for name, module in found.items():
            monkeypatch.setitem(sys.modules, name, module)
        return found

    return put


def ask(monkeypatch, stored, length=None):
    monkeypatch.setenv(plugin.SIDECAR, str(stored.path))
    monkeypatch.setenv(plugin.LENGTH, str(length or stored.length))
    plugin.register()


def mixer_of(modules, stored, k, rank=0, ranks=1, dtype=torch.float32, shift=0.0):
    """The k-th layer's mixer as a rank of vLLM holds it: A in float32, the bias in the model's dtype."""
    layer = stored.layers[k]
    A = -torch.exp(layer.A_log.float()).chunk(ranks)[rank]
    bias = layer.bias.chunk(ranks)[rank].to(dtype) + shift
    config = types.SimpleNamespace(model=stored.name, revision=None)  # vLLM's ModelConfig, as far as it is read
    if A.dim() == 1:
        return modules["vllm.model_executor.layers.mamba.mamba_mixer2"].MambaMixer2(A, bias, config)
    weight = torch.randn(len(A), 5, generator=torch.Generator().manual_seed(k)).to(dtype)
    return modules["vllm.model_executor.layers.mamba.mamba_mixer"].MambaMixer(A, bias, weight, config)


def given(mixer, seed=0):
    """What a mixer's projections hand over, (tokens, columns), of either generation, and raw delta as it is there."""
    generator = torch.Generator().manual_seed(seed)
    channels = mixer.A.shape[0]
    if mixer.A.dim() == 1:
        dtype = mixer.dt_bias.dtype
        projected = torch.randn(TOKENS, 7 + channels, generator=generator).to(dtype)
        return projected, projected[:, -channels:].clone(), mixer.dt_bias
    x = torch.randn(TOKENS, 5, generator=generator).to(mixer.dt_proj.weight.dtype)
    return x, x @ mixer.dt_proj.weight.mT, mixer.dt_proj.bias


def scan(mixer, raw, bias, threshold=None):
    """Everything a layer's scan computes of raw delta (tokens, channels), with random x, B and C."""
    generator = torch.Generator().manual_seed(5)
    tokens, channels = raw.shape
    raw, bias = raw.float()[None], bias.detach().float()
    B, C = torch.randn(2, 1, tokens, 4, generator=generator)
    if mixer.A.dim() == 1:
        x = torch.randn(1, tokens, channels, 3, generator=generator)
        B, C = B[:, :, None], C[:, :, None]
        out = ssd_scan(x, raw, mixer.A, B, C, delta_bias=bias, threshold=threshold, backend="reference")
    else:
        x = torch.randn(1, tokens, channels, generator=generator)
        A = mixer.A[:, :4].contiguous()
        out = selective_scan(x, raw, A, B, C, delta_bias=bias, threshold=threshold, backend="reference")
    return out


def check(mixer, g, seen, raw, bias):
    """`seen`, raw delta as the plug-in leaves it, is scanned as `raw` filtered with g; and the filter is at work."""
    for found, wanted in zip(scan(mixer, seen, bias), scan(mixer, raw, bias, g), strict=True):
        assert torch.equal(found, wanted)
    changed = (seen != raw).float().mean(0)
    assert (changed[::2] == 0).all()  # where g is 0
    assert 0 < changed[1::2].mean() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks", [1, 2])
def test_tokens_are_skipped_as_our_filter_skips_them(stored, stand_in, monkeypatch, ranks, dtype):
    for rank in range(ranks):
        modules = stand_in(rank, ranks)
        ask(monkeypatch, stored)
        for k in reversed(range(len(stored.layers))):  # in whatever order they are called
            mixer = mixer_of(modules, stored, k, rank, ranks, dtype)
            handed, raw, bias = given(mixer, seed=k)
            g = stored.side.thresholds(k, stored.length).chunk(ranks)[rank]
            check(mixer, g, mixer.raw_of(handed), raw, bias)


def test_it_says_what_it_does(stored, stand_in, monkeypatch):
    modules = stand_in()
    ask(monkeypatch, stored, 100 * stored.length)
    said = modules["vllm.logger"].said
    assert len(said) == 1 and str(stored.path) in said[0] and f"{100 * stored.length} tokens" in said[0]
    assert "own choice there is 'both'" in said[0] and "beyond its last calibrated length" in said[0]
    mixer = mixer_of(modules, stored, 0)
    mixer.raw_of(given(mixer)[0])
    assert "its Mamba layers are filtered" in said[1]


def test_a_rotary_factor_is_said_to_be_vllms(both, stand_in, monkeypatch, tmp_path):
    modules, stored = stand_in(), copy(both["demo-mamba2"])
    metadata = dict(stored.side.metadata)
    policy = json.loads(metadata["policy"])
    lengths = [n for band in policy["bands"] for n in band["lengths"]]
    metadata["policy"] = json.dumps(policy | {"rotary": {str(n): 4.0 for n in lengths}})
    stored.path = tmp_path / "rotary.safetensors"
    Sidecar(stored.side.tensors, metadata).write(stored.path)
    ask(monkeypatch, stored, lengths[-1])
    assert (
        f"its rotary factor of 4 from {stored.side.train_length} tokens on is left to vLLM's"
        in modules["vllm.logger"].said[0]
    )


def test_another_model_is_refused(stored, both, stand_in, monkeypatch):
    """Before it answers anything: its first call is vLLM's own trial run."""
    modules = stand_in()
    ask(monkeypatch, stored)
    other = both["demo-mamba2" if stored.name == "demo" else "demo"]
    mixer = mixer_of(modules, other, 0)
    with pytest.raises(SidecarError, match="model_fingerprint"):
        mixer.raw_of(given(mixer)[0])


def test_other_weights_under_the_models_name_are_refused(stored, stand_in, monkeypatch):
    modules = stand_in()
    ask(monkeypatch, stored)
    mixer = mixer_of(modules, stored, 0, shift=0.5)
    with pytest.raises(CheckpointError, match="no Mamba layer of the checkpoint"):
        mixer.raw_of(given(mixer)[0])


def test_a_quantised_model_names_the_checkpoint_it_was_made_of(stored, stand_in, monkeypatch):
    modules = stand_in()
    ask(monkeypatch, stored)
    mixer = mixer_of(modules, stored, 0)
    mixer.model_config.model = "of/quantised"
    handed, raw, _ = given(mixer)
    with pytest.raises(CheckpointError, match="of/quantised"):
        mixer.raw_of(handed.clone())
    monkeypatch.setenv(plugin.CHECKPOINT, stored.name)
    assert not torch.equal(mixer.raw_of(handed.clone()), raw)


def test_a_model_whose_floor_is_above_g_is_refused(both, stand_in, monkeypatch, tmp_path):
    """vLLM has no floor: it would drop tokens that our runtime reads."""
    stored = both["demo-mamba2"]
    folder = shutil.copytree(BUNDLED["demo-mamba2"], tmp_path / "floor")
    config = json.loads((folder / "config.json").read_text())
    config["ssm_cfg"]["dt_limit"] = [0.05, 1.0]
    (folder / "config.json").write_text(json.dumps(config))
    modules = stand_in()
    ask(monkeypatch, stored)
    mixer = mixer_of(modules, stored, 0)
    mixer.model_config.model = str(folder)
    with pytest.raises(ValueError, match=r"floor limits delta to \(0.05, 1\)"):
        mixer.raw_of(given(mixer)[0])


def test_without_a_sidecar_it_does_nothing(monkeypatch):
    monkeypatch.delenv(plugin.SIDECAR, raising=False)
    monkeypatch.delenv(plugin.LENGTH, raising=False)
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it would fail
    plugin.register()


@pytest.mark.parametrize("length", ["", "64k", "-1", "1.5"])
def test_half_of_the_settings_are_refused(monkeypatch, length):
    monkeypatch.setenv(plugin.SIDECAR, "some.safetensors")
    monkeypatch.setenv(plugin.LENGTH, length)
    with pytest.raises(ValueError, match=r"LONGSCAN_LENGTH=.*: set one to a sidecar"):
        plugin.register()


def test_settings_without_a_sidecar_are_refused(monkeypatch):
    monkeypatch.delenv(plugin.SIDECAR, raising=False)
    monkeypatch.setenv(plugin.LENGTH, "4096")
    with pytest.raises(ValueError, match="LONGSCAN_SIDECAR=''"):
        plugin.register()


def test_a_vllm_built_otherwise_is_refused(stored, stand_in, monkeypatch):
    """By name, since a filter that is never called would be no filter."""
    modules = stand_in()
    mixer2 = modules["vllm.model_executor.layers.mamba.mamba_mixer2"].MambaMixer2
    monkeypatch.setattr(mixer2, "conv_ssm_forward", lambda self, hidden, gate, output: None)
    with pytest.raises(ValueError, match=r"MambaMixer2 has no conv_ssm_forward\(projected_states, output\)"):
        ask(monkeypatch, stored)
    modules = stand_in()
    del vars(modules["vllm.model_executor.custom_op"])["PluggableLayer"]
    with pytest.raises(ValueError, match="cannot use this vLLM"):
        ask(monkeypatch, stored)


def test_a_second_replacement_is_refused(stored, stand_in, monkeypatch):
    modules = stand_in()
    modules["vllm.model_executor.custom_op"].op_registry_oot["MambaMixer2"] = object
    with pytest.raises(ValueError, match="another plug-in has replaced vLLM's MambaMixer2"):
        ask(monkeypatch, stored)


def test_importing_it_needs_nothing():
    """vLLM goes on without a plug-in that fails to import: unfiltered, and with a line in a log at most."""
    code = "import sys, longscan.engines.vllm; print([m for m in ('torch', 'vllm', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
