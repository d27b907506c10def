"""config.json of a Mamba checkpoint, in the state-spaces or the transformers layout, as one dataclass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, os_reason
from ..files import parse_json
from .config_keys import check_keys, is_state_spaces, refuse_quantised
from .source import peek

PILE_TRAIN_LENGTH = 2048  # the published state-spaces models; their config.json does not say
_PILE_VOCAB = (50277, 50280, 50288)
_MOST = 3e38  # what a float32 can hold
_HYBRIDS = ("zamba2", "bamba", "granitemoehybrid", "jamba", "falcon_h1", "nemotron_h")  # read through transformers


@dataclass(frozen=True)
class Mamba2Config:
    """What a Mamba-2 layer needs beyond its weights' shapes."""

    groups: int  # of heads that share B and C
    epsilon: float  # of the gated norm
    gated_norm: bool  # False: silu(z) alone
    norm_before_gate: bool
    delta_limit: tuple[float, float]  # delta is clamped to these after softplus


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
    eos_token_ids: tuple[int, ...]  # each ends a text; none: the tokenizer's <|endoftext|>, if it has one
    train_length: int | None
    neox_vocabulary: bool
    mamba2: Mamba2Config | None = None  # None: Mamba-1 layers
    inner_epsilon: float | None = None  # Falcon-Mamba: of the norms of delta's low rank, B and C
    d_state: int | None = None  # N: where it says so, the weights must agree
    bias: bool = False  # of both projections and of the convolution, as the libraries have it where nothing is said
    conv_bias: bool = True

    @staticmethod
    def read(path: Path) -> ModelConfig:
        """Read config.json. Raises CheckpointError if it is not that of a Mamba language model we run."""
        data = _object(path)
        refuse_quantised(data)
        check_keys(data)
        ends = eos_ids_of(path.parent, data.get("eos_token_id"))
        return _state_spaces(data, ends) if is_state_spaces(data) else _transformers(data, ends)


def eos_ids_of(folder: Path, configured: Any) -> tuple[int, ...]:
    """The ids that end a text: config.json's `eos_token_id`, an id or a list of them, then generation_config.json's.

    Raises CheckpointError on anything else.
    """
    path = folder / "generation_config.json"
    found: list[int] = []
    for name, given in (
        ("config.json", configured),
        (path.name, _object(path).get("eos_token_id") if path.is_file() else None),
    ):
        ids = given if isinstance(given, list) else [] if given is None else [given]
        if not all(type(one) is int for one in ids):
            raise CheckpointError(f"{name} says eos_token_id {given!r}; expected a token id or a list of them")
        found += ids
    return tuple(dict.fromkeys(found))


def _object(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {os_reason(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not valid JSON ({error}); download the model again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} holds no JSON object; download the model again")
    return data


def is_hybrid(path: Path) -> bool:
    """Whether config.json names a model that mixes attention with Mamba layers, read through transformers.

    Raises CheckpointError if that model is quantised.
    """
    data = peek(path)
    if data.get("model_type") not in _HYBRIDS:
        return False
    refuse_quantised(data)
    return True


def _get(data: dict[str, Any], key: str, kind: type) -> Any:
    if not isinstance(data.get(key), kind) or isinstance(data[key], bool):
        raise CheckpointError(
            f"config.json has no usable {key!r} (found {data.get(key)!r}, expected {kind.__name__}); "
            "give a Mamba checkpoint in the state-spaces or the transformers layout"
        )
    return data[key]


def _state_spaces(data: dict[str, Any], ends: tuple[int, ...]) -> ModelConfig:
    layer = data["ssm_cfg"] if isinstance(data["ssm_cfg"], dict) else {}
    flavour = str(layer.get("layer", "Mamba1"))
    if flavour not in ("Mamba1", "Mamba2"):
        raise CheckpointError(f"config.json asks for {flavour} layers; this version reads Mamba1 and Mamba2")
    if data.get("attn_layer_idx") or data.get("d_intermediate"):
        raise CheckpointError(
            "config.json names attention or MLP layers; this version loads pure Mamba models only (models of other "
            "libraries that are already in memory: longscan.runtime.attach)"
        )
    if flavour == "Mamba2" and layer.get("d_ssm") is not None:
        raise CheckpointError("config.json sets d_ssm, a Mamba-2 with an MLP inside; this version reads those without")
    vocabulary = _get(data, "vocab_size", int)
    return ModelConfig(
        layout="state-spaces",
        d_model=_get(data, "d_model", int),
        n_layer=_get(data, "n_layer", int),
        norm_epsilon=float(data.get("norm_epsilon", 1e-5)),
        rms_norm=bool(data.get("rms_norm", True)),
        residual_in_fp32=bool(data.get("residual_in_fp32", True)),
        tie_embeddings=bool(data.get("tie_embeddings", True)),
        eos_token_ids=ends,
        train_length=data.get("train_length", PILE_TRAIN_LENGTH if vocabulary in _PILE_VOCAB else None),
        neox_vocabulary=vocabulary in _PILE_VOCAB,
        mamba2=_state_spaces_mamba2(layer) if flavour == "Mamba2" else None,
        d_state=layer.get("d_state"),
        bias=bool(layer.get("bias", False)),
        conv_bias=bool(layer.get("conv_bias", True)),
    )


def _state_spaces_mamba2(layer: dict[str, Any]) -> Mamba2Config:
    return Mamba2Config(
        groups=int(layer.get("ngroups", 1)),
        epsilon=1e-5,  # mamba_ssm's own, whatever norm_epsilon says
        gated_norm=bool(layer.get("rmsnorm", True)),
        norm_before_gate=bool(layer.get("norm_before_gate", False)),
        delta_limit=_limit(layer.get("dt_limit")),
    )


def _transformers(data: dict[str, Any], ends: tuple[int, ...]) -> ModelConfig:
    kind = data.get("model_type")
    if kind not in ("mamba", "mamba2", "falcon_mamba"):
        raise CheckpointError(
            f"config.json says model_type {kind!r}; this version reads mamba, mamba2 and falcon_mamba "
            f"(state-spaces/mamba-130m ... mamba2-2.7b, their -hf copies, and Falcon-Mamba), {', '.join(_HYBRIDS)}"
        )
    if data.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"config.json asks for activation {data['hidden_act']!r}; Mamba uses silu")
    vocabulary = _get(data, "vocab_size", int)
    epsilon = float(data.get("layer_norm_epsilon", 1e-5))
    mamba2 = None
    if kind == "mamba2":
        mamba2 = Mamba2Config(int(data.get("n_groups", 8)), epsilon, True, False, _limit(data.get("time_step_limit")))
    return ModelConfig(
        layout="transformers",
        d_model=_get(data, "hidden_size", int),
        n_layer=_get(data, "num_hidden_layers", int),
        norm_epsilon=epsilon,
        rms_norm=True,
        residual_in_fp32=bool(data.get("residual_in_fp32", True)),
        tie_embeddings=bool(data.get("tie_word_embeddings", kind != "mamba2")),
        eos_token_ids=ends,
        train_length=data.get("train_length", PILE_TRAIN_LENGTH if vocabulary in _PILE_VOCAB else None),
        neox_vocabulary=vocabulary in _PILE_VOCAB,
        mamba2=mamba2,
        inner_epsilon=float(data.get("mixer_rms_eps", 1e-6)) if kind == "falcon_mamba" else None,
        d_state=data.get("state_size"),
        bias=bool(data.get("use_bias", False)),
        conv_bias=bool(data.get("use_conv_bias", True)),
    )


def delta_limit(data: dict[str, Any]) -> tuple[float, float]:
    """What config.json, of any family and layout, limits delta to after softplus; (0, inf) where it does not.

    Raises CheckpointError for a limit that is not two numbers.
    """
    if isinstance(layer := data.get("ssm_cfg"), dict) and is_state_spaces(data):
        return _limit(layer.get("dt_limit"))
    return _limit(data.get("mamba_dt_limit", data.get("time_step_limit")))


def _limit(given: Any) -> tuple[float, float]:
    """Two numbers, 0 <= low <= high; transformers writes an infinite one as {"__float__": "Infinity"}."""
    if given is None:
        return 0.0, math.inf
    try:
        low, high = (float(v["__float__"]) if isinstance(v, dict) else v for v in given)
        if 0 <= low <= min(high, _MOST):
            return float(low), float(high) if high <= _MOST else math.inf
    except (TypeError, ValueError, KeyError, OverflowError):
        pass
    raise CheckpointError(f"config.json limits delta to {given!r}; expected two numbers, the lower one at least 0")
