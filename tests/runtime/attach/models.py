"""Tiny random models of other libraries."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch

PURE = ["mamba", "falcon_mamba", "mamba2"]
HYBRIDS = ["zamba2", "bamba", "granite", "jamba", "falcon_h1", "nemotron_h"]
FAMILIES = [*PURE, *HYBRIDS]


def lively(model: Any, seed: int = 0) -> Any:
    """Weights that carry a signal through every layer, so that no small initial value hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.copy_(noise * (0.5 if "conv1d" in name or "embed" in name else parameter.shape[1] ** -0.5))
            elif name.endswith(("dt_bias", "dt_proj.bias")):
                parameter.copy_(noise - 4)
            else:
                parameter.add_(noise * 0.1)
    return model.eval()


def build(name: str, vocab_size: int = 64, **more: Any) -> Any:
    """A causal language model of transformers, with biases where the family has them; `more` goes into its config."""
    import transformers

    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": vocab_size}
    if name in ("mamba", "falcon_mamba"):
        kind = {"mamba": transformers.MambaConfig, "falcon_mamba": transformers.FalconMambaConfig}[name]
        config = kind(**common, hidden_size=24, state_size=8, num_hidden_layers=3, use_bias=name == "mamba")
    elif name == "mamba2":
        config = transformers.Mamba2Config(
            **common, hidden_size=24, state_size=8, num_hidden_layers=3, num_heads=6, head_dim=8, n_groups=2,
            chunk_size=16, use_bias=True, time_step_limit=(0.004, 0.5),
        )  # fmt: skip
    elif name == "zamba2":
        config = transformers.Zamba2Config(
            **common, hidden_size=32, num_hidden_layers=4, layers_block_type=["mamba", "hybrid"] * 2,
            mamba_d_state=8, mamba_headdim=8, n_mamba_heads=8, mamba_ngroups=2, mamba_expand=2, chunk_size=16,
            num_attention_heads=4, num_key_value_heads=4, intermediate_size=48, num_mem_blocks=1, adapter_rank=4,
            use_shared_attention_adapter=True, use_mem_rope=True, pad_token_id=0, eos_token_id=None,
            **{"time_step_min": 1e-30, **more},
        )  # fmt: skip
    else:
        config = _hybrid_config(name, vocab_size=vocab_size, **more)
    return lively(transformers.AutoModelForCausalLM.from_config(config))


def _hybrid_config(name: str, **more: Any) -> Any:
    """Every kind of layer the family has, and a multiplier other than 1 wherever it has one."""
    import transformers

    attention: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    common = {"hidden_size": 32, **attention, "pad_token_id": 0, "eos_token_id": None}
    mixers = {
        "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_expand": 2,
        "mamba_chunk_size": 16,
    }  # fmt: skip
    if name == "bamba":
        return transformers.BambaConfig(**common, **mixers, num_hidden_layers=3, attn_layer_indices=[1], **more)
    if name == "granite":
        return transformers.GraniteMoeHybridConfig(
            **common, **mixers, num_hidden_layers=3, num_local_experts=4, shared_intermediate_size=24,
            embedding_multiplier=2.0, logits_scaling=3.0, residual_multiplier=0.7, attention_multiplier=0.3,
            mamba_proj_bias=True,
            **{"layer_types": ["linear_attention", "full_attention", "linear_attention"], **more},
        )  # fmt: skip
    if name == "jamba":
        return transformers.JambaConfig(
            **common, num_hidden_layers=4, attn_layer_period=3, attn_layer_offset=1, num_experts=4, mamba_d_state=8,
            mamba_dt_rank=4, mamba_proj_bias=True, **more,
        )  # fmt: skip
    if name == "falcon_h1":
        return transformers.FalconH1Config(
            **common, **mixers, num_hidden_layers=3, mamba_d_ssm=64, mamba_proj_bias=True, ssm_in_multiplier=1.3,
            ssm_out_multiplier=0.8, ssm_multipliers=[0.7, 1.2, 0.9, 1.1, 0.6], key_multiplier=0.5,
            attention_in_multiplier=0.9, attention_out_multiplier=0.7, mlp_multipliers=[0.8, 1.2],
            embedding_multiplier=2.0, lm_head_multiplier=0.5, **more,
        )  # fmt: skip
    assert name == "nemotron_h"
    return transformers.NemotronHConfig(
        **common, layers_block_type=["linear_attention", "mlp", "full_attention", "linear_attention", "moe"],
        head_dim=8, ssm_state_size=8, mamba_num_heads=8, mamba_head_dim=8, n_groups=2, chunk_size=16, use_bias=True,
        n_routed_experts=4, moe_intermediate_size=24, moe_shared_expert_intermediate_size=24,
        **{"time_step_min": 1e-30, **more},
    )  # fmt: skip


def publish(model: Any, folder: Path) -> Path:
    """A checkpoint as its maker's lie on the Hub: transformers writes their tensors' names, but its own config.json."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    kind = config["model_type"]
    if kind in ("jamba", "nemotron_h"):  # code of their own lies beside the weights
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_own.Model", "AutoConfig": "configuration_own.Config"}
    if kind == "nemotron_h":
        letters = {"linear_attention": "M", "mlp": "-", "full_attention": "*", "moe": "E"}
        config["num_hidden_layers"] = len(config["layers_block_type"])
        config["time_step_limit"] = model.config.time_step_limit  # with a bare Infinity
        config["hybrid_override_pattern"] = "".join(letters[layer] for layer in config.pop("layers_block_type"))
    if kind == "granitemoehybrid":
        config["layer_types"] = [{"linear_attention": "mamba"}.get(one, "attention") for one in config["layer_types"]]
    if kind in ("falcon_h1", "granitemoehybrid"):
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
        config["rope_scaling"] = None
    path.write_text(json.dumps(config))
    return folder


def cache_of(model: Any, out: Any) -> dict[str, Any]:
    """The cache of an output, as the argument of the model's next call, by the name this transformers has for it."""
    known = ("cache", "cache_params", "past_key_values")
    name = next(name for name in known if name in inspect.signature(model.forward).parameters)
    return {name: out[name]}
