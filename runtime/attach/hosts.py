"""Where a foreign library keeps a layer's states between calls, and how it calls a mixer.

A host's `call` turns a mixer's arguments into the hidden states, the padding mask and a Memory: the states of one
layer, and the place where the reading of the whole sequence (a State without tensors) travels with them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor

from ..reading.state import State

_READING = "_longscan_reading"  # an attribute of the library's cache: it is copied and dropped with it


def reading_of(cache: Any) -> State | None:
    """How far a library's cache was read by an attached model; None if by none."""
    return getattr(cache, _READING, None)


def remember(cache: Any, reading: State) -> None:
    """Let the reading travel with the cache."""
    setattr(cache, _READING, reading)


class Memory(Protocol):
    """One layer's states in the library's own cache."""

    def started(self) -> bool:
        """Whether tokens were read before this call."""

    def read(self, last: int) -> tuple[Tensor | None, Tensor | None]:
        """The `last` = W-1 inputs of the convolution (B, channels, W-1), and the ssm state; None before any token."""

    def write(self, conv: Tensor, ssm: Tensor) -> None:
        """Replace both. The libraries hold W inputs, of which the oldest is never read again: it becomes 0."""

    def reading(self) -> State | None: ...
    def remember(self, reading: State) -> None: ...


class Call(NamedTuple):
    """What a mixer was called with; memory is None where nothing is kept."""

    hidden: Tensor
    mask: Tensor | None
    memory: Memory | None


class TransformersMemory:
    """A layer of a transformers Cache (5.x), which holds the last W inputs of the convolution."""

    def __init__(self, cache: Any, layer: int):
        self.cache, self.layer = cache, layer

    def started(self) -> bool:
        return self.cache.get_recurrent_state(self.layer) is not None

    def read(self, last: int) -> tuple[Tensor | None, Tensor | None]:
        conv = self.cache.get_conv_state(self.layer)
        return None if conv is None else conv[..., -last:], self.cache.get_recurrent_state(self.layer)

    def write(self, conv: Tensor, ssm: Tensor) -> None:
        if self.cache.is_recording_past(self.layer):
            raise ValueError("assisted generation rolls states back, which attach does not follow; generate without it")
        window = F.pad(conv, (1, 0))  # the cache appends to what it holds and keeps the last W: W of them replace it
        self.cache.update_conv_state(window, self.layer, conv_kernel_size=window.shape[-1])
        self.cache.update_recurrent_state(ssm, self.layer)

    def reading(self) -> State | None:
        return reading_of(self.cache)

    def remember(self, reading: State) -> None:
        remember(self.cache, reading)


_CACHE = ("cache", "cache_params", "past_key_values")  # transformers' names for it: since 5.24, and before
_UNREAD = {  # what a model passes on to all its layers, and its own Mamba layers do not read
    "output_attentions", "output_hidden_states", "output_router_logits", "use_cache", "return_dict",
    "position_ids", "position_embeddings", "num_items_in_batch",
}  # fmt: skip
_PACKED = ("seq_idx", "cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")


def cache_name(function: Any, host: str) -> str:
    """What a function of transformers calls its cache. Raises ValueError for a library that has changed."""
    named = inspect.signature(function).parameters
    for name in _CACHE:
        if name in named:
            return name
    raise ValueError(
        f"{host} takes none of {', '.join(_CACHE)}; this transformers is not one longscan knows (docs/compatibility.md)"
    )


def refuse_packed(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError where several sequences lie in one row."""
    for name in _PACKED:
        if arguments.get(name) is not None:
            raise ValueError(f"attach does not read packed sequences ({name}); give one sequence a row")


def refuse_unknown(arguments: Mapping[str, Any], mixer: Any) -> None:
    """Raise ValueError for what a mixer was called with and attach does not understand; None asks for nothing."""
    refuse_packed(arguments)
    for name, value in arguments.items():
        if value is not None and name not in _UNREAD:
            raise ValueError(
                f"{type(mixer).__name__} was called with {name}, which attach does not understand; "
                "leave it out, or detach(model)"
            )


def call_transformers(mixer: Any, *args: Any, **kwargs: Any) -> Call:
    """transformers: mixer(hidden_states, cache, attention_mask), by whatever name the cache goes there."""
    signature = inspect.signature(type(mixer).forward)
    try:
        bound = signature.bind(mixer, *args, **kwargs).arguments
    except TypeError as error:
        raise ValueError(f"{type(mixer).__name__} was called in a way attach does not understand: {error}") from error
    bound |= bound.pop("kwargs", {})
    del bound["self"]
    if "hidden_states" not in bound:
        raise ValueError(f"{type(mixer).__name__} was called without hidden_states, which attach does not understand")
    hidden: Tensor = bound.pop("hidden_states")
    mask = bound.pop("attention_mask", None)
    caches = [cache for cache in (bound.pop(name, None) for name in _CACHE) if cache is not None]
    if len(caches) > 1:
        raise ValueError(f"{type(mixer).__name__} was called with two caches; give one")
    refuse_unknown(bound, mixer)
    return Call(hidden, mask, TransformersMemory(caches[0], mixer.layer_idx) if caches else None)


def memory_of(arguments: Mapping[str, Any], mixer: Any) -> Memory | None:
    """A mixer's states in the cache that a model of transformers was called with; None without one."""
    cache = next((arguments[name] for name in _CACHE if arguments.get(name) is not None), None)
    return None if cache is None else TransformersMemory(cache, mixer.layer_idx)


def slot(module: Any) -> str:
    """Where a module's forward is: accelerate keeps it aside, and calls it once the inputs are on its device."""
    return "_old_forward" if "_hf_hook" in vars(module) else "forward"


def refuse_spread(model: Any, mixers: Sequence[Any]) -> None:
    """Raise ValueError for weights that do not lie whole where their layer runs, and for layers run by others."""
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is not None and any(isinstance(one, tensors.DTensor) for one in model.parameters()):
        raise ValueError(
            "this model is tensor-parallel (its weights are DTensors), which attach does not follow; load it without "
            "tp_plan, with device_map to spread its layers, or serve it with vLLM (docs/engines.md)"
        )
    for mixer in mixers:
        if any(parameter.is_meta for parameter in mixer.parameters()):
            raise ValueError(
                "this model's Mamba layers are offloaded (accelerate fetches their weights when they are called); load "
                "it on devices that hold them"
            )


def refuse_others(mixers: Sequence[Any]) -> None:
    """Raise ValueError for layers with a forward that is not their library's: attach would run the library's."""
    for mixer in mixers:
        if slot(mixer) == "forward" and "forward" in vars(mixer):
            raise ValueError("another library runs this model's Mamba layers already; load the model without it")
        owner = next(kind for kind in type(mixer).__mro__ if "forward" in vars(kind))
        if owner.__module__.split(".")[0] not in ("transformers", "mamba_ssm"):
            raise ValueError(
                f"{owner.__module__}.{owner.__name__} has a forward of its own, which attach would replace by its "
                "library's; attach to a model with transformers' or mamba_ssm's own Mamba layers"
            )


class MambaSSMMemory:
    """A layer of mamba_ssm's InferenceParams, which holds the last W inputs of the convolution."""

    def __init__(self, params: Any, layer: int):
        self.params, self.layer = params, layer

    def started(self) -> bool:
        return bool(self.params.seqlen_offset > 0)

    def read(self, last: int) -> tuple[Tensor | None, Tensor | None]:
        if not self.started():
            return None, None
        conv, ssm = self.params.key_value_memory_dict[self.layer]
        return conv[..., -last:], ssm

    def write(self, conv: Tensor, ssm: Tensor) -> None:
        window = F.pad(conv, (1, 0))
        held = self.params.key_value_memory_dict.get(self.layer)
        if held is None:
            self.params.key_value_memory_dict[self.layer] = (window, ssm)
        else:  # allocated beforehand: keep its tensors
            held[0].copy_(window)
            held[1].copy_(ssm)

    def reading(self) -> State | None:
        return reading_of(self.params)

    def remember(self, reading: State) -> None:
        remember(self.params, reading)


def call_mamba_ssm(mixer: Any, hidden_states: Tensor, inference_params: Any = None, **more: Any) -> Call:
    """mamba_ssm: mixer(hidden_states, inference_params=)."""
    refuse_unknown(more, mixer)
    memory = None if inference_params is None else MambaSSMMemory(inference_params, mixer.layer_idx)
    return Call(hidden_states, None, memory)
