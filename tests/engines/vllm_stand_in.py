"""As much of vLLM as its plug-in touches, for where vLLM is not installed: not its arithmetic, the places it is called.

Names, signatures and shapes are those of vLLM 0.33.0, whose own classes `test_vllm.py` takes where it can import them.
"""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor, nn


def modules(rank: int = 0, ranks: int = 1) -> dict[str, types.ModuleType]:
    """vLLM's modules by name, new ones each time; `vllm.logger.said` collects what is logged once."""
    registry: dict[str, type] = {}

    class PluggableLayer(nn.Module):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return super().__new__(registry.get(cls.__name__, cls))

        @classmethod
        def register_oot(cls, layer: type, name: str) -> type:
            assert name not in registry
            registry[name] = layer
            return layer

    class MambaMixer(PluggableLayer):
        def __init__(self, A: Tensor, bias: Tensor, weight: Tensor, model_config: Any):
            super().__init__()
            self.A, self.model_config = A, model_config
            self.dt_proj = nn.Linear(weight.shape[1], len(bias), dtype=bias.dtype)
            self.dt_proj.bias.data, self.dt_proj.weight.data = bias, weight

        def _ssm_transform(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """x (tokens, R) -> raw delta (channels, tokens) without its bias, B, C."""
            return (x @ self.dt_proj.weight.mT).mT, x, x

        def raw_of(self, x: Tensor) -> Tensor:
            return self._ssm_transform(x)[0].mT

    class MambaMixer2(PluggableLayer):
        def __init__(self, A: Tensor, dt_bias: Tensor, model_config: Any):
            super().__init__()
            self.A, self.dt_bias, self.model_config = A, dt_bias, model_config

        def conv_ssm_forward(self, projected_states: Tensor, output: Tensor) -> None:
            output.copy_(projected_states[..., -len(self.dt_bias) :])

        def raw_of(self, projected: Tensor) -> Tensor:
            """What its scan would see of in_proj's output (tokens, ... + heads)."""
            out = projected.new_empty(len(projected), len(self.dt_bias))
            self.conv_ssm_forward(projected, out)
            return out

    said: list[str] = []
    logger = types.SimpleNamespace(info_once=lambda text, *args: said.append(text % args if args else text))
    contents: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.distributed": {
            "get_tensor_model_parallel_rank": lambda: rank,
            "get_tensor_model_parallel_world_size": lambda: ranks,
        },
        "vllm.logger": {"init_logger": lambda name: logger, "said": said},
        "vllm.model_executor": {},
        "vllm.model_executor.custom_op": {"PluggableLayer": PluggableLayer, "op_registry_oot": registry},
        "vllm.model_executor.layers": {},
        "vllm.model_executor.layers.mamba": {},
        "vllm.model_executor.layers.mamba.mamba_mixer": {"MambaMixer": MambaMixer},
        "vllm.model_executor.layers.mamba.mamba_mixer2": {"MambaMixer2": MambaMixer2},
    }
    found = {}
    for name, values in contents.items():
        found[name] = types.ModuleType(name)
        vars(found[name]).update(values)
    return found
