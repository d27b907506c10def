"""Random models in the shapes of the published ones, for measurements that do not ask what a model says."""

from __future__ import annotations

from pathlib import Path

import torch

SHAPES = {"130m": (768, 24), "370m": (1024, 48), "790m": (1536, 48), "1.4b": (2048, 48), "2.8b": (2560, 64)}
VOCABULARY, STATES = 50280, 16


def write_model(folder: Path, shape: str, dtype: torch.dtype = torch.float32) -> None:
    """A checkpoint in the transformers layout, initialised as transformers does."""
    from transformers import MambaConfig, MambaForCausalLM

    width, layers = SHAPES[shape]
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, state_size=STATES)
    MambaForCausalLM(config).to(dtype).save_pretrained(folder)
