"""Where a foreign library keeps a layer's states between calls, and how it calls a mixer.

A host's `call` turns a mixer's arguments into the hidden states, the padding mask and a Memory: the states of one
layer, and the place where the reading of the whole sequence (a State without tensors) travels with them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..state import State

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

    def read(self, width: int) -> tuple[Tensor | None, Tensor | None]:
        """The last W-1 inputs of the convolution (B, channels, W-1) and the ssm state; None before the first token."""

    def write(self, raw: Tensor, ssm: Tensor, width: int) -> None:
        """Append this call's inputs of the convolution, raw (B, L, channels), and replace the ssm state."""

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

    def read(self, width: int) -> tuple[Tensor | None, Tensor | None]:
        conv = self.cache.get_conv_state(self.layer)
        return None if conv is None else conv[..., 1 - width :], self.cache.get_recurrent_state(self.layer)

    def write(self, raw: Tensor, ssm: Tensor, width: int) -> None:
        if self.cache.is_recording_past(self.layer):
            raise ValueError("assisted generation rolls states back, which attach does not follow; generate without it")
        self.cache.update_conv_state(raw.transpose(1, 2), self.layer, conv_kernel_size=width)
        self.cache.update_recurrent_state(ssm, self.layer)

    def reading(self) -> State | None:
        return reading_of(self.cache)

    def remember(self, reading: State) -> None:
        remember(self.cache, reading)


def call_transformers(
    mixer: Any, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None, **more: Any
) -> Call:
    """transformers: mixer(hidden_states, cache_params=, attention_mask=)."""
    if more.get("seq_idx") is not None:
        raise ValueError("attach does not read packed sequences (seq_idx); give one sequence a row")
    memory = None if cache_params is None else TransformersMemory(cache_params, mixer.layer_idx)
    if attention_mask is not None and hidden_states.shape[1] > 1:
        return Call(hidden_states, attention_mask[:, -hidden_states.shape[1] :].bool(), memory)
    return Call(hidden_states, None, memory)  # a token that is decoded is never padding


class MambaSSMMemory:
    """A layer of mamba_ssm's InferenceParams, which holds the last W inputs of the convolution."""

    def __init__(self, params: Any, layer: int):
        self.params, self.layer = params, layer

    def started(self) -> bool:
        return bool(self.params.seqlen_offset > 0)

    def read(self, width: int) -> tuple[Tensor | None, Tensor | None]:
        if not self.started():
            return None, None
        conv, ssm = self.params.key_value_memory_dict[self.layer]
        return conv[..., 1 - width :], ssm

    def write(self, raw: Tensor, ssm: Tensor, width: int) -> None:
        raw = raw.transpose(1, 2)
        held = self.params.key_value_memory_dict.get(self.layer)
        before = held[0] if held is not None and self.started() else raw.new_zeros(*raw.shape[:2], width)
        conv = torch.cat([before.to(raw.dtype), raw], dim=2)[..., -width:]
        if held is None:
            self.params.key_value_memory_dict[self.layer] = (conv.contiguous(), ssm)
        else:  # allocated beforehand: keep its tensors
            held[0].copy_(conv)
            held[1].copy_(ssm)

    def reading(self) -> State | None:
        return reading_of(self.params)

    def remember(self, reading: State) -> None:
        remember(self.params, reading)


def call_mamba_ssm(mixer: Any, hidden_states: Tensor, inference_params: Any = None, **more: Any) -> Call:
    """mamba_ssm: mixer(hidden_states, inference_params=)."""
    if any(value is not None for value in more.values()):
        raise ValueError("attach does not read packed sequences (seq_idx, cu_seqlens); give one sequence a row")
    if hidden_states.is_cuda and torch.cuda.is_current_stream_capturing():
        raise ValueError("a CUDA graph would freeze the filter at one length; generate with cg=False")
    memory = None if inference_params is None else MambaSSMMemory(inference_params, mixer.layer_idx)
    return Call(hidden_states, None, memory)
