"""The plug-in in vLLM's own mixers, called as its runner calls them, a demo model's weights through its own loaders.

Run where vLLM can be imported, on a CPU: its three kernels are replaced by our reference, unfiltered. Everything else,
from projection to projection, is vLLM's: the layer must give what our filtered layer gives.
"""

from __future__ import annotations

import os
import types

import pytest
import torch

from longscan.engines import vllm as plugin
from longscan.kernels import causal_conv1d, selective_scan, ssd_scan
from longscan.runtime import load
from longscan.runtime.checkpoint.reader import read_tensors
from longscan.runtime.checkpoint.source import locate
from longscan.runtime.sidecar.plan import LayerPlan

from ..checkpoints import make_sidecar

os.environ.setdefault("VLLM_TARGET_DEVICE", "cpu")
vllm = pytest.importorskip("vllm.model_executor.layers.mamba.mamba_mixer2", reason="vLLM is not installed")
TOKENS, LAYER = 50, 1


def conv(x, weight, bias, **more):
    """vLLM's causal_conv1d_fn: x (channels, tokens)."""
    before = x.new_zeros(1, x.shape[0], weight.shape[1] - 1)
    return causal_conv1d(x.T[None], weight, bias, before, backend="reference")[0][0].T


def chunk_scan(x, dt, A, B, C, *, D, dt_bias, out, **more):
    """vLLM's mamba_chunk_scan_combined_varlen."""
    out.copy_(ssd_scan(x[None], dt[None], A, B[None], C[None], D, delta_bias=dt_bias, backend="reference")[0][0])


def selective(u, state, delta, A, B, C, D, z, bias, **more):
    """vLLM's selective_scan_fn: (channels, tokens)."""
    u, delta, B, C, z = (t.T[None] for t in (u, delta, B, C, z))
    return selective_scan(u, delta, A, B, C, D, z, delta_bias=bias, backend="reference")[0][0].T


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """One process as vLLM's only rank."""
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import (
        destroy_distributed_environment,
        destroy_model_parallel,
        init_distributed_environment,
        initialize_model_parallel,
    )

    found = VllmConfig(device_config=DeviceConfig(device="cpu"))
    meeting = tmp_path_factory.mktemp("ranks") / "meeting"
    with set_current_vllm_config(found):
        init_distributed_environment(1, 0, f"file://{meeting}", 0, backend="gloo")
        initialize_model_parallel(1)
        yield found
    destroy_model_parallel()
    destroy_distributed_environment()


def build(name, layer, prefix):
    """vLLM's mixer for a layer of ours, its weights through its loaders, and what its runner passes it."""
    from vllm.config import CacheConfig
    from vllm.model_executor.layers.mamba.mamba_mixer import MambaMixer
    from vllm.v1.attention.backends.mamba1_attn import Mamba1AttentionMetadata
    from vllm.v1.attention.backends.mamba2_attn import Mamba2AttentionMetadata

    path = f"backbone.layers.{LAYER}.mixer."
    stored = {key.removeprefix(path): t for key, t in read_tensors(locate(name), lambda _, t: t).items() if path in key}
    M, E = stored["out_proj.weight"].shape
    common = {
        "hidden_size": M, "ssm_state_size": layer.state_shape[-1], "conv_kernel_size": layer.conv.shape[1],
        "intermediate_size": E, "use_conv_bias": True, "use_bias": False, "prefix": prefix,
        "model_config": types.SimpleNamespace(model=name, revision=None), "cache_config": CacheConfig(),
    }  # fmt: skip
    if "dt_bias" in stored:
        heads = layer.channels
        mixer = vllm.MambaMixer2(n_groups=layer.groups, num_heads=heads, head_dim=E // heads, **common)
        kind = Mamba2AttentionMetadata
    else:
        rank = stored["dt_proj.weight"].shape[1]
        mixer = MambaMixer(time_step_rank=rank, use_rms_norm=False, **common)
        kind = Mamba1AttentionMetadata
    for key, parameter in mixer.named_parameters():
        parameter.weight_loader(parameter, stored["A_log" if key == "A" else key])
    for module in mixer.modules():
        if hasattr(module, "quant_method") and "conv1d" not in module.prefix:
            module.quant_method.process_weights_after_loading(module)
    mixer.kv_cache = (torch.zeros(1, 3, E), torch.zeros(1, E, 4))
    metadata = object.__new__(kind)
    vars(metadata).update(dict.fromkeys(kind.__dataclass_fields__))
    vars(metadata).update(num_prefills=1, num_prefill_tokens=TOKENS, num_decodes=0, num_decode_tokens=0)
    vars(metadata).update(state_indices_tensor_p=torch.zeros(1, dtype=torch.int64), prep_initial_states=False)
    return mixer, metadata


def run(mixer, metadata, config, hidden):
    from vllm.forward_context import set_forward_context

    with set_forward_context({mixer.prefix: metadata}, config), torch.inference_mode():
        if isinstance(mixer, vllm.MambaMixer2):
            return mixer(hidden)
        out = torch.empty_like(hidden)
        mixer(hidden, out)
        return out


@pytest.mark.parametrize("name", ["demo", "demo-mamba2"])
def test_vllms_layer_is_our_filtered_layer(name, config, tmp_path, monkeypatch, relative_rms):
    from vllm.model_executor.custom_op import op_registry_oot
    from vllm.model_executor.layers.mamba import mamba_mixer

    for module, function, ours in (
        (vllm, "causal_conv1d_fn", conv), (vllm, "mamba_chunk_scan_combined_varlen", chunk_scan),
        (mamba_mixer, "causal_conv1d_fn", conv), (mamba_mixer, "selective_scan_fn", selective),
    ):  # fmt: skip
        monkeypatch.setattr(module, function, ours)
    lm = load(name)
    layer = lm.weights.layers[LAYER]
    side = make_sidecar(lm)
    side.write(tmp_path / "made.longscan.safetensors")
    hidden = torch.randn(TOKENS, lm.weights.embedding.shape[1], generator=torch.Generator().manual_seed(0))

    def ours(plan):
        inputs, _ = layer.inputs(hidden[None], hidden.new_zeros(1, *layer.conv_shape), None, "reference")
        return layer.scan(inputs, plan, None, None, "reference")[0][0]

    plain = run(*build(name, layer, f"plain.{name}.mixer"), config, hidden)
    assert relative_rms(plain, ours(LayerPlan())) < 1e-6

    monkeypatch.setenv(plugin.SIDECAR, str(tmp_path / "made.longscan.safetensors"))
    monkeypatch.setenv(plugin.LENGTH, str(4 * side.train_length))
    plugin.register()
    try:
        mixer, metadata = build(name, layer, f"layers.7.{name}.mixer")
        filtered = run(mixer, metadata, config, hidden)
    finally:
        op_registry_oot.clear()
    wanted = ours(LayerPlan(threshold=side.thresholds(LAYER, 4 * side.train_length)))
    assert relative_rms(filtered, wanted) < 1e-6
    assert relative_rms(filtered, plain) > 1e-2
