"""What config.json may say: every key that changes the arithmetic is read, or refused by name.

A state-spaces config is the arguments of mamba_ssm's MambaConfig and of its layers, which take no others; nor do we. A
transformers config holds what its class knows and, unread, anything else: there only code of its own is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import CheckpointError

_METADATA = (  # of transformers, the Hub and ourselves: says nothing about the arithmetic
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "bos_token_id",
    "eos_token_id", "pad_token_id", "use_cache", "initializer_range", "quantization_config", "train_length",
)  # fmt: skip
_STATE_SPACES = (
    *_METADATA, "d_model", "n_layer", "vocab_size", "ssm_cfg", "rms_norm", "residual_in_fp32", "tie_embeddings",
    "norm_epsilon", "attn_layer_idx", "attn_cfg", "d_intermediate",
    "fused_add_norm", "pad_vocab_size_multiple",  # how it is computed, and what the embedding's own shape says
)  # fmt: skip
_EITHER = (
    "layer", "d_state", "bias", "conv_bias",
    "d_conv", "expand", "dt_rank", "headdim", "D_has_hdim",  # said by the weights' shapes
    "dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "conv_init", "A_init_range",  # how training began
    "use_fast_path", "use_mem_eff_path", "chunk_size",  # how it is computed
)  # fmt: skip
_LAYER = {"Mamba1": _EITHER, "Mamba2": (*_EITHER, "ngroups", "d_ssm", "rmsnorm", "norm_before_gate", "dt_limit")}
_BOOLEANS = (
    "rms_norm", "residual_in_fp32", "tie_embeddings", "tie_word_embeddings", "use_bias", "use_conv_bias", "bias",
    "conv_bias", "rmsnorm", "norm_before_gate",
)  # fmt: skip
_EPSILONS = ("norm_epsilon", "layer_norm_epsilon", "mixer_rms_eps")
_COUNTS = ("ngroups", "n_groups", "d_state", "state_size", "train_length")


def refuse_quantised(data: Mapping[str, Any]) -> None:
    """Raise CheckpointError naming the method where the weights are not what config.json's sizes say."""
    for key in ("quantization_config", "compression_config"):
        said = data.get(key)
        if said:
            about = said if isinstance(said, dict) else {}
            bits = next((bits for bits in (4, 8) if about.get(f"load_in_{bits}bit")), about.get("bits"))
            method = about.get("quant_method") or ("bitsandbytes" if "load_in_8bit" in about else "unnamed")
            width = f", {bits} bits" if bits else ""
            raise CheckpointError(
                f"config.json's {key} says the model is quantised ({method}{width}), which is not read; "
                "give the unquantised model"
            )


def is_state_spaces(data: Mapping[str, Any]) -> bool:
    """Whether it is mamba_ssm's layout. transformers' own conversions keep its keys beside theirs, which then count."""
    return "d_model" in data and "ssm_cfg" in data and "hidden_size" not in data


def check_keys(data: Mapping[str, Any]) -> None:
    """Raise CheckpointError naming a key that is not understood, or whose value is of another type than it must be."""
    layer = data.get("ssm_cfg") or {}
    if not isinstance(layer, dict):
        raise CheckpointError(f"config.json says ssm_cfg {layer!r}; expected an object")
    if is_state_spaces(data):
        _only(data, _STATE_SPACES, "config.json")
        _only(layer, _LAYER.get(str(layer.get("layer", "Mamba1")), layer), "config.json's ssm_cfg")
    elif data.get("auto_map"):
        raise CheckpointError("config.json names code of its own (auto_map), which is not run; give a plain Mamba")
    for values in (data, layer):
        for key in _BOOLEANS:
            if not isinstance(values.get(key, True), bool):
                raise CheckpointError(f"config.json says {key} {values[key]!r}; expected true or false")
        for key in _EPSILONS:
            value = values.get(key, 1e-5)
            if not isinstance(value, float) or not 0 < value < 1:
                raise CheckpointError(f"config.json says {key} {value!r}; expected a number between 0 and 1")
        for key in _COUNTS:
            value = values.get(key, 1)
            unknown = value is None and key == "train_length"
            if not unknown and (type(value) is not int or not 0 < value < 2**53):
                raise CheckpointError(f"config.json says {key} {value!r}; expected a whole number above 0")


def _only(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise CheckpointError(
            f"{where} has the key {unknown[0]!r}, which is not understood; remove it if it does not change the model"
        )
