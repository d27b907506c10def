"""The Mamba-1 language model's weights: plain dataclasses, checked shapes, no modules.

V vocabulary, M d_model, D d_inner, N d_state, R dt_rank, W conv width
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoint import read_tensors
from .config import ModelConfig
from .errors import CheckpointError
from .source import Source

# Kept in float32 whatever the model's dtype: they steer exponentials.
_FLOAT32 = ("A_log", ".D", "dt_proj.bias", "norm.weight", "norm.bias", "norm_f.weight", "norm_f.bias")


@dataclass(frozen=True)
class Layer:
    """One residual block. `A = -exp(A_log)`; biases are None where the checkpoint has none."""

    norm: Tensor  # (M,)
    norm_bias: Tensor | None  # (M,), LayerNorm models only
    in_proj: Tensor  # (2 D, M): x, then z
    in_bias: Tensor | None  # (2 D,)
    conv: Tensor  # (D, W)
    conv_bias: Tensor | None  # (D,)
    x_proj: Tensor  # (R + 2 N, D): delta's low rank, B, C
    dt_proj: Tensor  # (D, R)
    dt_bias: Tensor  # (D,) float32
    A: Tensor  # (D, N) float32, negative
    D: Tensor  # (D,) float32
    out_proj: Tensor  # (M, D)
    out_bias: Tensor | None  # (M,)


@dataclass(frozen=True)
class Weights:
    """The whole model."""

    embedding: Tensor  # (V, M)
    layers: tuple[Layer, ...]
    norm: Tensor  # (M,)
    norm_bias: Tensor | None
    head: Tensor  # (V, M); the embedding itself where tied
    fingerprint: str

    @property
    def d_inner(self) -> int:
        return self.layers[0].A.shape[0]

    @property
    def d_state(self) -> int:
        return self.layers[0].A.shape[1]

    @property
    def d_conv(self) -> int:
        return self.layers[0].conv.shape[1]


def read_weights(source: Source, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Weights:
    """Read, check and place every weight. Raises CheckpointError naming the tensor that is missing or misshapen."""

    def convert(name: str, tensor: Tensor) -> Tensor:
        wanted = torch.promote_types(torch.float32, dtype) if name.endswith(_FLOAT32) else dtype
        return tensor.to(device=device, dtype=wanted, copy=True)

    tensors = read_tensors(source, convert)
    used: set[str] = set()

    def optional(name: str, *shape: int) -> Tensor | None:
        tensor = tensors.get(name)
        if tensor is None:
            return None
        used.add(name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{source.name}: {name} has shape {tuple(tensor.shape)}, expected {shape}; "
                "config.json and weights differ"
            )
        return tensor

    def get(name: str, *shape: int) -> Tensor:
        tensor = optional(name, *shape)
        if tensor is None:
            raise CheckpointError(f"{source.name}: no tensor {name}; give a complete Mamba-1 checkpoint")
        return tensor

    def shape_of(name: str, dimensions: int) -> torch.Size:
        if name not in tensors or tensors[name].dim() != dimensions:
            raise CheckpointError(f"{source.name}: no usable tensor {name}; give a complete Mamba-1 checkpoint")
        return tensors[name].shape

    M = config.d_model
    if config.n_layer < 1:
        raise CheckpointError(f"{source.name}: config.json says {config.n_layer} layers; expected at least one")
    layers = []
    for i in range(config.n_layer):
        p = f"backbone.layers.{i}."
        D, N = shape_of(p + "mixer.A_log", 2)
        R = shape_of(p + "mixer.dt_proj.weight", 2)[1]
        W = shape_of(p + "mixer.conv1d.weight", 3)[2]
        layers.append(
            Layer(
                norm=get(p + "norm.weight", M),
                norm_bias=optional(p + "norm.bias", M),
                in_proj=get(p + "mixer.in_proj.weight", 2 * D, M),
                in_bias=optional(p + "mixer.in_proj.bias", 2 * D),
                conv=get(p + "mixer.conv1d.weight", D, 1, W)[:, 0],
                conv_bias=optional(p + "mixer.conv1d.bias", D),
                x_proj=get(p + "mixer.x_proj.weight", R + 2 * N, D),
                dt_proj=get(p + "mixer.dt_proj.weight", D, R),
                dt_bias=get(p + "mixer.dt_proj.bias", D),
                A=-torch.exp(get(p + "mixer.A_log", D, N)),
                D=get(p + "mixer.D", D),
                out_proj=get(p + "mixer.out_proj.weight", M, D),
                out_bias=optional(p + "mixer.out_proj.bias", M),
            )
        )
    V = shape_of("backbone.embedding.weight", 2)[0]
    embedding = get("backbone.embedding.weight", V, M)
    stored_head = optional("lm_head.weight", V, M)
    if stored_head is None and not config.tie_embeddings:
        raise CheckpointError(f"{source.name}: no tensor lm_head.weight, though config.json does not tie it")
    head = embedding if config.tie_embeddings or stored_head is None else stored_head
    norm, norm_bias = get("backbone.norm_f.weight", M), optional("backbone.norm_f.bias", M)
    unknown = sorted(set(tensors) - used)
    if unknown:
        raise CheckpointError(f"{source.name}: tensor {unknown[0]} belongs to no Mamba-1 layer; check config.json")
    return Weights(embedding, tuple(layers), norm, norm_bias, head, _fingerprint(tensors, config.n_layer))


def _fingerprint(tensors: dict[str, Tensor], n_layer: int) -> str:
    """sha256 over shapes, A_log and dt bias as float32: the same for every layout, dtype of the rest, and sharding."""
    digest = hashlib.sha256()
    for i in range(n_layer):
        for name in ("A_log", "dt_proj.bias", "dt_bias"):
            if f"backbone.layers.{i}.mixer.{name}" not in tensors:
                continue
            tensor = tensors[f"backbone.layers.{i}.mixer.{name}"].to("cpu", torch.float32).contiguous()
            digest.update(f"{i}.{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
    for name in ("backbone.embedding.weight", "backbone.layers.0.mixer.in_proj.weight"):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
    return digest.hexdigest()
