"""Tiny random models of other libraries."""

from __future__ import annotations

from typing import Any

import torch

PURE = ["mamba", "falcon_mamba"]
FAMILIES = [*PURE]


def lively(model: Any, seed: int = 0) -> Any:
    """Weights that carry a signal through every layer, so that no small initial value hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1 and not name.endswith("A_log"):
                parameter.copy_(noise * (0.5 if "conv1d" in name or "embed" in name else parameter.shape[1] ** -0.5))
            else:
                parameter.add_(noise * 0.1)
    return model.eval()


def build(name: str) -> Any:
    """A causal language model of transformers, 64 tokens of vocabulary, with biases where the family has them."""
    import transformers

    torch.manual_seed(0)
    if name in ("mamba", "falcon_mamba"):
        kind = {"mamba": transformers.MambaConfig, "falcon_mamba": transformers.FalconMambaConfig}[name]
        config = kind(vocab_size=64, hidden_size=24, state_size=8, num_hidden_layers=3, use_bias=name == "mamba")
    return lively(transformers.AutoModelForCausalLM.from_config(config))


def cache_of(out: Any) -> dict[str, Any]:
    """The cache of an output, as the argument of the next call."""
    name = "cache_params" if "cache_params" in out else "past_key_values"
    return {name: out[name]}
