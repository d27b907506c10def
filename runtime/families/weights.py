"""A Mamba language model's weights: plain dataclasses, checked shapes, no modules. V vocabulary, M d_model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.config import ModelConfig
from ..checkpoint.reader import read_tensors
from ..checkpoint.source import Source
from ..checkpoint.tensors import Tensors
from ..errors import CheckpointError
from . import mamba1, mamba2
from .layer import Layer, Norm

# Kept in float32 whatever the model's dtype: they steer exponentials.
_FLOAT32 = (
    "A_log", ".D", "dt_proj.bias", "dt_bias", "norm.weight", "norm.bias", "norm_f.weight", "norm_f.bias",
)  # fmt: skip
STEERING = tuple(dict.fromkeys(mamba1.STEERING + mamba2.STEERING))


@dataclass(frozen=True)
class Weights:
    """The whole model."""

    embedding: Tensor  # (V, M)
    layers: tuple[Layer, ...]
    norms: tuple[Norm, ...]  # one in front of each layer
    norm: Tensor  # (M,)
    norm_bias: Tensor | None
    head: Tensor  # (V, M); the embedding itself where tied
    fingerprint: str

    @property
    def devices(self) -> list[torch.device]:
        """Where each layer lies: all on one."""
        return [self.embedding.device] * len(self.layers)

    @cached_property
    def blocks(self) -> list[tuple[Any, ...]] | None:
        """Each block's weights for a CPU's fused step; None where there is none."""
        if self.embedding.device.type != "cpu":
            return None
        found = [layer.arrays(norm) for layer, norm in zip(self.layers, self.norms) if isinstance(layer, mamba1.Mamba1)]
        blocks = [block for block in found if block is not None]
        return blocks if len(blocks) == len(self.layers) else None

    @property
    def channels(self) -> int:
        """Values of delta a token and layer: d_inner in Mamba-1, heads in Mamba-2."""
        return self.layers[0].channels


def read_weights(source: Source, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Weights:
    """Read, check and place every weight. Raises CheckpointError naming the tensor that is missing or misshapen."""

    def convert(name: str, tensor: Tensor) -> Tensor:
        wanted = torch.promote_types(torch.float32, dtype) if name.endswith(_FLOAT32) else dtype
        return tensor.to(device=device, dtype=wanted, copy=True)

    if config.n_layer < 1:
        raise CheckpointError(f"{source.name}: config.json says {config.n_layer} layers; expected at least one")
    found = read_tensors(source, convert)
    if config.n_layer > len(found):  # nor is a list of so many names made
        raise CheckpointError(
            f"{source.name}: config.json says {config.n_layer} layers, the weights are {len(found)} tensors; "
            "config.json and weights differ"
        )
    tensors, M = Tensors(source.name, found), config.d_model
    read = mamba2.read_mamba2 if config.mamba2 is not None else mamba1.read_mamba1
    blocks = [f"backbone.layers.{i}." for i in range(config.n_layer)]
    layers: tuple[Layer, ...] = tuple(read(tensors, block + "mixer.", config) for block in blocks)
    for block, layer in zip(blocks, layers):
        _agree(layer, config, found, block + "mixer.")
    norms = tuple(_norm(tensors, block + "norm", config, dtype) for block in blocks)
    V = tensors.shape("backbone.embedding.weight", 2)[0]
    embedding = tensors.get("backbone.embedding.weight", V, M)
    stored_head = tensors.optional("lm_head.weight", V, M)
    if stored_head is None and not config.tie_embeddings:
        raise CheckpointError(
            f"{source.name}: no tensor lm_head.weight, though config.json does not tie it; correct config.json"
        )
    if stored_head is not None and config.tie_embeddings and not torch.equal(stored_head, embedding):
        raise CheckpointError(
            f"{source.name}: lm_head.weight differs from the embedding, though config.json ties the two; "
            "set that to false for a head of its own, or leave lm_head.weight out"
        )
    head = embedding if config.tie_embeddings or stored_head is None else stored_head
    norm = tensors.get("backbone.norm_f.weight", M)
    norm_bias = None if config.rms_norm else tensors.get("backbone.norm_f.bias", M)
    tensors.finish()
    return Weights(embedding, layers, norms, norm, norm_bias, head, fingerprint(found, config.n_layer))


def _norm(tensors: Tensors, p: str, config: ModelConfig, dtype: torch.dtype) -> Norm:
    bias = None if config.rms_norm else tensors.get(p + ".bias", config.d_model)
    return Norm(tensors.get(p + ".weight", config.d_model), bias, dtype)


def _agree(layer: Layer, config: ModelConfig, names: Mapping[str, Tensor], p: str) -> None:
    """What config.json says of the layer whose names begin with `p`, and another value of which gives other numbers."""
    checked = (
        ("d_state", config.d_state, layer.state_shape[-1]),
        ("in_proj.bias", config.bias, p + "in_proj.bias" in names),
        ("out_proj.bias", config.bias, p + "out_proj.bias" in names),
        ("conv1d.bias", config.conv_bias, p + "conv1d.bias" in names),
    )
    for what, said, found in checked:
        if said is not None and said != found:
            raise CheckpointError(
                f"{p}{what}: {found} in the weights, {said} by config.json or its default; "
                "give a complete checkpoint, or correct config.json"
            )


def fingerprint(tensors: Mapping[str, Tensor], n_layer: int) -> str:
    """sha256 over shapes, A_log and dt bias as float32: the same for every layout, dtype of the rest, and sharding."""
    digest = hashlib.sha256()
    for i in range(n_layer):
        for name in STEERING:
            steering = tensors.get(f"backbone.layers.{i}.mixer.{name}")
            if steering is not None:
                tensor = steering.to("cpu", torch.float32).contiguous()
                digest.update(f"{i}.{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
    for name in ("backbone.embedding.weight", "backbone.layers.0.mixer.in_proj.weight"):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
    return digest.hexdigest()
