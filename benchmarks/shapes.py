"""Random models in the shapes of the published ones, for measurements that do not ask what a model says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SHAPES = {"130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1.4b": (2048, 48), "2.8b": (2560, 64)}
VOCABULARY, STATES = 50280, 16


def write_model(folder: Path, shape: str, dtype: torch.dtype = torch.float32) -> None:
    """A checkpoint in the transformers layout, initialised as transformers does."""
    from transformers import MambaConfig, MambaForCausalLM

    width, layers = SHAPES[shape]
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, state_size=STATES)
    MambaForCausalLM(config).to(dtype).save_pretrained(folder)


def write_state_spaces(folder: Path, M: int, n_layer: int, V: int, device: str = "cpu") -> dict[str, Tensor]:
    """A checkpoint in the state-spaces layout, written and returned: M d_model, V vocabulary.

    Initialised as Mamba is (dt log-uniform in [1e-3, 1e-1], A = -1 ... -N), in bfloat16 but for what steers
    exponentials.
    """
    g, D, R = torch.Generator(device).manual_seed(0), 2 * M, -(-M // 16)

    def matrix(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=g, device=device) * shape[-1] ** -0.5).bfloat16()

    tensors = {"backbone.embedding.weight": matrix(V, M), "backbone.norm_f.weight": torch.ones(M, device=device)}
    for i in range(n_layer):
        dt = torch.exp(torch.rand(D, generator=g, device=device) * math.log(100) + math.log(1e-3))
        layer = {
            "norm.weight": torch.ones(M, device=device),
            "mixer.in_proj.weight": matrix(2 * D, M),
            "mixer.conv1d.weight": matrix(D, 1, 4),
            "mixer.conv1d.bias": torch.zeros(D, device=device),
            "mixer.x_proj.weight": matrix(R + 2 * STATES, D),
            "mixer.dt_proj.weight": matrix(D, R),
            "mixer.dt_proj.bias": dt.expm1().log(),  # softplus of it is dt
            "mixer.A_log": torch.arange(1.0, STATES + 1, device=device).log().repeat(D, 1),
            "mixer.D": torch.ones(D, device=device),
            "mixer.out_proj.weight": matrix(M, D) / math.sqrt(n_layer),
        }
        tensors |= {f"backbone.layers.{i}.{name}": t for name, t in layer.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"d_model": M, "n_layer": n_layer, "vocab_size": V, "ssm_cfg": {}, "rms_norm": True}
    config |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8, "tie_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return tensors
