"""What makes a function public: foreign keywords are answered, and torch.compile and torch.export see an operator.

A compiler cannot look into numba's loops and Triton's launches as we make them; an operator (`torch.ops.longscan.*`) it
takes whole, by the shapes that come out. The public functions go through these only while one is compiling: a call
through torch's dispatcher costs tens of microseconds, as much as a decode step's own arithmetic. An operator has no
gradient.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_PACKED = "packed sequences are not read; give one sequence a row"
_RETURNED = "the last state is always returned"
# Arguments of mamba_ssm's and causal_conv1d's functions that have no place here.
_FOREIGN = {
    "seq_idx": _PACKED,
    "cu_seqlens": _PACKED,
    "dt_bias": "it is delta_bias here",
    "dt_softplus": "it is delta_softplus here, on unless switched off",
    "dt_limit": "it is delta_limit here",
    "initial_states": "it is initial_state here",
    "return_last_state": _RETURNED,
    "return_final_states": _RETURNED,
    "chunk_size": "the backend picks its own chunks; leave it out",
    "activation": "silu is always applied; leave it out",
}
_NAMESPACE = "longscan"
_OPTIONS = "Tensor? D, Tensor? z, Tensor? delta_bias, bool delta_softplus, Tensor? threshold, Tensor? scale"
_LAYER = f"Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, {_OPTIONS}"
_SCAN = f"{_LAYER}, Tensor? index, Tensor? mask, Tensor? initial_state"
_STEP = f"Tensor(a!) state, {_LAYER}"
_SCORES = "Tensor delta, Tensor? delta_bias, bool delta_softplus, Tensor? mask, Tensor? weight"
SCHEMAS = {
    "selective_scan": f"({_SCAN}, str backend) -> (Tensor, Tensor)",
    "selective_step": f"({_STEP}, str backend) -> Tensor",
    "ssd_scan": f"({_SCAN}, float[] delta_limit, str backend) -> (Tensor, Tensor)",
    "ssd_step": f"({_STEP}, float[] delta_limit, str backend) -> Tensor",
    "causal_conv1d": "(Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? mask, str backend) "
    "-> (Tensor, Tensor)",
    "token_scores": f"({_SCORES}, str backend) -> Tensor",
}


def public(function: Callable[P, R]) -> Callable[P, R]:
    """A function that answers the keywords of its peers in other libraries with what stands in their place.

    While a compiler traces, one with a schema is the operator of its name.
    """
    parameters = inspect.signature(function).parameters.values()
    # In the schema's order; what has no default is always given.
    defaults = {p.name: None if p.default is p.empty else p.default for p in parameters}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name in _FOREIGN:
                raise ValueError(f"{function.__name__} has no argument {name}: {_FOREIGN[name]}")
        if operator is not None and torch.compiler.is_compiling():
            given: dict[str, Any] = {**defaults, **dict(zip(defaults, args)), **kwargs}
            found: R = operator(*given.values())
            return found
        return function(*args, **kwargs)

    operator = _register(function, list(defaults)) if function.__name__ in SCHEMAS else None
    return checked


def _register(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """The operator of a function with these arguments.

    There is one, however often it is asked for: with a checkout on the path transformers imports its folder `kernels`
    once more, for Hugging Face's library of that name, and a second operator would pull the first from under its users.
    """
    name = function.__name__
    registered = getattr(getattr(torch.ops, _NAMESPACE), name, None)
    if registered is not None:
        return registered.default

    def run(*args: Any) -> Any:
        given = dict(zip(names, args, strict=True))
        if "delta_limit" in given:
            given["delta_limit"] = tuple(given["delta_limit"])
        found = function(**given)
        return tuple(t.contiguous() for t in found) if isinstance(found, tuple) else found.contiguous()

    mutated = [n for n in names if n == "state"]
    operator = torch.library.custom_op(f"{_NAMESPACE}::{name}", run, mutates_args=mutated, schema=SCHEMAS[name])
    operator.register_fake(_FAKES[name])
    return operator


def _scanned(x: Tensor, index: Tensor | None) -> Tensor:
    return x.new_empty(x.shape if index is None else (*index.shape, *x.shape[2:]))


def _last(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def _selective_scan(x: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _scanned(x, rest[8]), _last(x, x.shape[0], *A.shape)


def _ssd_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _scanned(x, rest[7]), _last(x, x.shape[0], *x.shape[2:], B.shape[3])


def _step(state: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _causal_conv1d(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], x.shape[2], weight.shape[1] - 1)


def _token_scores(delta: Tensor, *rest: Any) -> Tensor:
    return delta.new_empty(delta.shape[:2], dtype=torch.float32)


_FAKES: dict[str, Callable[..., Any]] = {
    "selective_scan": _selective_scan,
    "selective_step": _step,
    "ssd_scan": _ssd_scan,
    "ssd_step": _step,
    "causal_conv1d": _causal_conv1d,
    "token_scores": _token_scores,
}
