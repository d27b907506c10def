"""Mixers of other libraries as layers of the runtime: the same arithmetic, their own modules as projections.

A layer is made anew for each call, so that it holds the parameters as they are now: moved, converted or adapted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..families.layer import Layer, Projection
from ..families.mamba1 import InnerNorms, Mamba1
from ..families.mamba2 import Gate, GatedNorm, Mamba2

Adapter = Callable[[Any], Layer]


def mamba1(mixer: Any) -> Mamba1:
    """transformers' Mamba, Falcon-Mamba and Jamba, and mamba_ssm's, with in_proj, conv1d, x_proj, dt_proj, A_log, D and
    out_proj."""
    _check_activation(mixer)
    _check_read(mixer, "dt_proj", nn.Linear)
    _check_read(mixer, "conv1d", nn.Conv1d)
    return Mamba1(
        in_proj=mixer.in_proj,
        conv=mixer.conv1d.weight[:, 0],
        conv_bias=mixer.conv1d.bias,
        x_proj=mixer.x_proj,
        dt_proj=mixer.dt_proj.weight,
        dt_bias=_wide(mixer.dt_proj.bias),
        A=-torch.exp(_wide(mixer.A_log)),
        D=_wide(mixer.D),
        out_proj=mixer.out_proj,
        inner_norms=_inner_norms(mixer),
    )


def _inner_norms(mixer: Any) -> InnerNorms | None:
    """Falcon-Mamba's and Jamba's modules that norm delta's low rank, B and C; None in Mamba-1."""
    if not hasattr(mixer, "dt_layernorm"):
        return None

    def norms(projected: Tensor, rank: int, _: str) -> tuple[Tensor, Tensor, Tensor]:
        N = (projected.shape[-1] - rank) // 2
        low_rank, B, C = projected.split([rank, N, N], dim=-1)
        return mixer.dt_layernorm(low_rank), mixer.b_layernorm(B), mixer.c_layernorm(C)

    return norms


def mamba2(mixer: Any) -> Mamba2:
    """transformers' Mamba2 mixers, those of the hybrids Bamba and Granite 4 among them.

    The model's time_step_limit holds for steps as for prompts; transformers leaves it out of its own steps.
    """
    return _mamba2(mixer, mixer.norm, mixer.n_groups, mixer.ssm_state_size, mixer.time_step_limit, _wide(mixer.D))


def unraised_mamba2(mixer: Any) -> Mamba2:
    """transformers' Nemotron-H and Zamba2: delta is limited by config.json, to (0, inf), as in their makers' code.

    transformers raises delta to time_step_min in prompts, though not in steps: a number that training only began with.
    """
    limit = getattr(mixer.config, "time_step_limit", None) or (0.0, math.inf)
    return _mamba2(mixer, mixer.norm, mixer.n_groups, mixer.ssm_state_size, limit, _wide(mixer.D))


def falcon_h1(mixer: Any) -> Mamba2:
    """transformers' Falcon-H1: multipliers before and after in_proj, and a norm behind the scan in some models only."""

    def in_proj(hidden: Tensor) -> Tensor:
        projected: Tensor = mixer.in_proj(hidden * mixer.ssm_in_multiplier) * mixer.mup_vector.flatten()
        return projected

    gate = mixer.norm if mixer.mamba_rms_norm else GatedNorm(None, 1, 0.0, False)
    groups, N, limit = mixer.n_groups, mixer.ssm_state_size, mixer.time_step_limit
    return _mamba2(mixer, gate, groups, N, limit, _wide(mixer.D), in_proj)


def mamba_ssm2(mixer: Any) -> Mamba2:
    """mamba_ssm's Mamba2, as in the published mamba2-* models: other names, and a norm it computes on a GPU alone.

    Tensor parallelism and half-MLP mixers (d_ssm) are refused.
    """
    if mixer.process_group is not None or mixer.d_ssm != mixer.d_inner:
        raise ValueError("attach does not read tensor-parallel or d_ssm mixers; build the model without them")
    gate = GatedNorm(None, 1, 0.0, False)
    if mixer.rmsnorm:
        groups = mixer.d_inner // (mixer.norm.group_size or mixer.d_inner)
        gate = GatedNorm(mixer.norm.weight, groups, mixer.norm.eps, mixer.norm_before_gate)
    D = _wide(mixer.D)
    D = D.view(mixer.nheads, -1) if mixer.D_has_hdim else D
    return _mamba2(mixer, gate, mixer.ngroups, mixer.d_state, mixer.dt_limit, D)


def mamba_ssm(mixer: Any) -> Layer:
    """Either generation of mamba_ssm's mixers."""
    return mamba1(mixer) if hasattr(mixer, "x_proj") else mamba_ssm2(mixer)


def _mamba2(
    mixer: Any,
    gate: Gate,
    groups: int,
    N: int,
    limit: Sequence[float],
    D: Tensor,
    in_proj: Projection | None = None,
) -> Mamba2:
    _check_activation(mixer)
    _check_read(mixer, "conv1d", nn.Conv1d)
    low, high = limit
    return Mamba2(
        in_proj=mixer.in_proj if in_proj is None else in_proj,
        conv=mixer.conv1d.weight[:, 0],
        conv_bias=mixer.conv1d.bias,
        A=-torch.exp(_wide(mixer.A_log)),
        dt_bias=_wide(mixer.dt_bias),
        limit=(low, high),
        D=D,
        gate=gate,
        out_proj=mixer.out_proj,
        groups=groups,
        N=N,
    )


def _check_read(mixer: Any, name: str, kind: type[nn.Module]) -> None:
    """Raise ValueError for a module whose weights are read, not called, and say less than its own forward computes.

    A quantised weight that is a tensor by its own arithmetic (torchao's) may stay in a plain Linear: F.linear of it is
    what its module computes. An adapter, or a weight packed into integers, is a module of another kind.
    """
    module = getattr(mixer, name)
    if type(module).forward is not kind.forward or not module.weight.is_floating_point():
        raise ValueError(
            f"attach reads the weights of {name}, and this model's is a {type(module).__name__}: an adapter there "
            "would be left out, a quantised weight misread; merge the adapter, or load the model with a plain float one"
        )


def _check_activation(mixer: Any) -> None:
    """Raise ValueError for a mixer that does not gate with silu, as the kernels do."""
    name = getattr(mixer, "activation", "silu")
    if name not in ("silu", "swish"):
        raise ValueError(f"this model's activation is {name!r}; attach reads models with silu, as the published ones")


def _wide(t: Tensor) -> Tensor:
    """float32 (float64 stays): what steers exponentials is never narrower."""
    return t.detach().to(torch.promote_types(torch.float32, t.dtype))
