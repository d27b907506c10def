"""config.json of a Mamba-1 checkpoint, in the state-spaces or the transformers layout, as one dataclass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError

PILE_TRAIN_LENGTH = 2048  # the published state-spaces models; their config.json does not say
_PILE_VOCAB = (50277, 50280, 50288)


@dataclass(frozen=True)
class ModelConfig:
    """What the weights' shapes do not say by themselves."""

    layout: str  # "state-spaces" or "transformers"
    d_model: int
    n_layer: int
    norm_epsilon: float
    rms_norm: bool
    residual_in_fp32: bool
    tie_embeddings: bool
    eos_token_id: int | None
    train_length: int | None
    neox_vocabulary: bool

    @staticmethod
    def read(path: Path) -> ModelConfig:
        """Read config.json. Raises CheckpointError if it is not a Mamba-1 language model's."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"cannot read {path.name}: {error.strerror}; check the file") from error
        except ValueError as error:
            raise CheckpointError(f"{path.name} is not valid JSON ({error}); download the model again") from error
        if not isinstance(data, dict):
            raise CheckpointError(f"{path.name} holds no JSON object; download the model again")
        return _state_spaces(data) if "d_model" in data and "ssm_cfg" in data else _transformers(data)


_HYBRIDS = ("zamba2", "bamba")


def is_hybrid(path: Path) -> bool:
    """Whether config.json names a model that mixes attention with Mamba layers, read through transformers."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # ModelConfig.read says what is wrong
    return isinstance(data, dict) and data.get("model_type") in _HYBRIDS


def _get(data: dict[str, Any], key: str, kind: type) -> Any:
    if not isinstance(data.get(key), kind):
        raise CheckpointError(
            f"config.json has no usable {key!r} (found {data.get(key)!r}, expected {kind.__name__}); "
            "give a Mamba-1 checkpoint in the state-spaces or the transformers layout"
        )
    return data[key]


def _state_spaces(data: dict[str, Any]) -> ModelConfig:
    flavour = str(data["ssm_cfg"].get("layer", "Mamba1"))
    if flavour != "Mamba1":
        raise CheckpointError(f"config.json asks for {flavour} layers; this version reads Mamba-1 only")
    if data.get("attn_layer_idx"):
        raise CheckpointError("config.json names attention layers; this version reads pure Mamba-1 models only")
    vocabulary = _get(data, "vocab_size", int)
    return ModelConfig(
        layout="state-spaces",
        d_model=_get(data, "d_model", int),
        n_layer=_get(data, "n_layer", int),
        norm_epsilon=float(data.get("norm_epsilon", 1e-5)),
        rms_norm=bool(data.get("rms_norm", True)),
        residual_in_fp32=bool(data.get("residual_in_fp32", True)),
        tie_embeddings=bool(data.get("tie_embeddings", True)),
        eos_token_id=data.get("eos_token_id"),
        train_length=data.get("train_length", PILE_TRAIN_LENGTH if vocabulary in _PILE_VOCAB else None),
        neox_vocabulary=vocabulary in _PILE_VOCAB,
    )


def _transformers(data: dict[str, Any]) -> ModelConfig:
    if data.get("model_type") != "mamba":
        raise CheckpointError(
            f"config.json says model_type {data.get('model_type')!r}; this version reads Mamba-1 models "
            "(state-spaces/mamba-130m ... 2.8b and their -hf copies)"
        )
    if data.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json asks for activation {data['hidden_act']!r}; Mamba-1 uses silu")
    vocabulary = _get(data, "vocab_size", int)
    eos = data.get("eos_token_id")
    return ModelConfig(
        layout="transformers",
        d_model=_get(data, "hidden_size", int),
        n_layer=_get(data, "num_hidden_layers", int),
        norm_epsilon=float(data.get("layer_norm_epsilon", 1e-5)),
        rms_norm=True,
        residual_in_fp32=bool(data.get("residual_in_fp32", True)),
        tie_embeddings=bool(data.get("tie_word_embeddings", True)),
        eos_token_id=eos if isinstance(eos, int) else None,
        train_length=data.get("train_length", PILE_TRAIN_LENGTH if vocabulary in _PILE_VOCAB else None),
        neox_vocabulary=vocabulary in _PILE_VOCAB,
    )
