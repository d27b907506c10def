"""Tiny random checkpoints in the exact layout of the published ones, and sidecars for them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from longscan.calibrate.sidecars import sidecar_from_bands
from longscan.runtime import LM, Sidecar
from longscan.runtime.sidecar.sidecar import Band


def random_tensors(
    M: int = 24, n_layer: int = 3, V: int = 64, N: int = 8, seed: int = 0, bias: bool = False
) -> dict[str, Tensor]:
    """A Mamba-1 by state-spaces names, initialised like the published models but livelier."""
    g = torch.Generator().manual_seed(seed)
    D, R = 2 * M, -(-M // 16)

    def rand(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    tensors = {"backbone.embedding.weight": rand(V, M, scale=0.5), "backbone.norm_f.weight": 1 + rand(M, scale=0.1)}
    for i in range(n_layer):
        p = f"backbone.layers.{i}."
        tensors |= {
            p + "norm.weight": 1 + rand(M, scale=0.1),
            p + "mixer.in_proj.weight": rand(2 * D, M, scale=M**-0.5),
            p + "mixer.conv1d.weight": rand(D, 1, 4, scale=0.5),
            p + "mixer.conv1d.bias": rand(D, scale=0.1),
            p + "mixer.x_proj.weight": rand(R + 2 * N, D, scale=D**-0.5),
            p + "mixer.dt_proj.weight": rand(D, R, scale=R**-0.5),
            p + "mixer.dt_proj.bias": rand(D, scale=1.0) - 4,
            p + "mixer.A_log": torch.log(torch.arange(1.0, N + 1)).repeat(D, 1) + rand(D, N, scale=0.1),
            p + "mixer.D": 1 + rand(D, scale=0.1),
            p + "mixer.out_proj.weight": rand(M, D, scale=D**-0.5),
        }
        if bias:
            tensors |= {p + "mixer.in_proj.bias": rand(2 * D, scale=0.1), p + "mixer.out_proj.bias": rand(M, scale=0.1)}
    return tensors


def random_mamba2_tensors(
    M: int = 24, n_layer: int = 3, V: int = 64, N: int = 8, P: int = 8, G: int = 2, seed: int = 0,
    D_a_channel: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """A Mamba-2 by state-spaces names; E = 2 M channels in heads of P."""
    g = torch.Generator().manual_seed(seed)
    E = 2 * M
    H, channels = E // P, E + 2 * G * N

    def rand(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=g) * scale

    tensors = {"backbone.embedding.weight": rand(V, M, scale=0.5), "backbone.norm_f.weight": 1 + rand(M, scale=0.1)}
    for i in range(n_layer):
        p = f"backbone.layers.{i}."
        tensors |= {
            p + "norm.weight": 1 + rand(M, scale=0.1),
            p + "mixer.in_proj.weight": rand(E + channels + H, M, scale=M**-0.5),
            p + "mixer.conv1d.weight": rand(channels, 1, 4, scale=0.5),
            p + "mixer.conv1d.bias": rand(channels, scale=0.1),
            p + "mixer.dt_bias": rand(H, scale=1.0) - 4,
            p + "mixer.A_log": torch.log(torch.linspace(1.0, 12.0, H)) + rand(H, scale=0.1),
            p + "mixer.D": 1 + rand(E if D_a_channel else H, scale=0.1),
            p + "mixer.norm.weight": 1 + rand(E, scale=0.1),
            p + "mixer.out_proj.weight": rand(M, E, scale=E**-0.5),
        }
    return tensors


MAMBA2 = {"layer": "Mamba2", "headdim": 8, "ngroups": 2}  # ssm_cfg of the tensors above


def write_falcon(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    """As tiiuae/falcon-mamba-7b lies on the Hub: a Mamba-1's tensors, transformers' names, model_type falcon_mamba."""
    folder.mkdir(parents=True, exist_ok=True)
    V, M = tensors["backbone.embedding.weight"].shape
    n_layer = sum(name.endswith("A_log") for name in tensors)
    values = {"model_type": "falcon_mamba", "hidden_size": M, "num_hidden_layers": n_layer, "vocab_size": V, **config}
    (folder / "config.json").write_text(json.dumps(values))
    renamed = {name.replace("embedding.weight", "embeddings.weight"): t for name, t in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def state_spaces_config(tensors: dict[str, Tensor], **more: object) -> dict[str, object]:
    V, M = tensors["backbone.embedding.weight"].shape
    return {
        "d_model": M,
        "n_layer": sum(name.endswith("A_log") for name in tensors),
        "vocab_size": V,
        "ssm_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
        **more,
    }


def write_state_spaces(folder: Path, tensors: dict[str, Tensor], *, pickled: bool = False, **config: object) -> Path:
    """As state-spaces/mamba-130m lies on the Hub: config.json and pytorch_model.bin (or model.safetensors)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(state_spaces_config(tensors, **config)))
    if pickled:
        torch.save({**tensors, "lm_head.weight": tensors["backbone.embedding.weight"]}, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_sidecar(
    lm: LM, train_length: int = 16, *, share: float = 0.5, layer: int = 1, keep: int = 30, filter_decode: bool = True
) -> Sidecar:
    """One band with a filter on every second channel of every layer and a decimation, both forced at will."""
    g = torch.Generator().manual_seed(1)
    n_layer, channels = len(lm.weights.layers), lm.weights.channels
    table = torch.rand(2, n_layer, channels, generator=g) * 0.04 * share
    table[:, :, ::2] = 0
    tensors = {
        "lengths": torch.tensor([train_length + 1, 4 * train_length]),
        "thresholds": table,
        "layers": torch.tensor([layer]),
        "keep": torch.tensor([keep]),
        "weights": torch.rand(1, channels, generator=g),
    }
    band = Band(
        lengths=(4 * train_length,), method="both", theta=1e-3, log_theta=-6.9, mass={str(4 * train_length): 2.0}
    )
    return sidecar_from_bands(lm, train_length, [(band, tensors)], filter_decode=filter_decode)
