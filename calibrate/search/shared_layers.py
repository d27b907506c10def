"""How candidates read: the whole model, or only the layers above those that many candidates share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from ...runtime.model import LM
from ...runtime.reading.forward import Stream, embed, logits, run_layers
from ...runtime.reading.prefill import layer_plans, plan_at
from ...runtime.reading.state import State
from ...runtime.sidecar.plan import PLAIN

# (model, ids (B, S), method, rows of logits wanted) -> logits (B, K, V), state
Read = Callable[[LM, Tensor, str, int], tuple[Tensor, State]]
_HELD_BYTES = 2 << 30  # residual streams kept at most; beyond, a batch is read from the bottom again


def read_all(lm: LM, ids: Tensor, method: str, keep: int) -> tuple[Tensor, State]:
    """All layers, in chunks that suit the machine."""
    out = lm.prefill(ids, method=method, logits_to_keep=keep)
    return out.logits, out.state


def read_whole(lm: LM, ids: Tensor, method: str, keep: int) -> tuple[Tensor, State]:
    """All layers in one pass, as every candidate is read: the bits hang on no memory, and too little is an error."""
    if lm.hybrid:  # its layers cannot be run one by one, and it reads in one pass unless told otherwise
        return read_all(lm, ids, method, keep)
    return SharedLayers(0).read(lm, ids, method, keep)


class SharedLayers:
    """Layers 0 ... stop - 1 of the plain model, computed once a batch; candidates must leave those layers alone."""

    def __init__(self, stop: int) -> None:
        self.stop = stop
        self._held: dict[bytes, tuple[Stream, State]] = {}
        self._bytes = 0

    @torch.inference_mode()
    def read(self, lm: LM, ids: Tensor, method: str, keep: int) -> tuple[Tensor, State]:
        """Logits and state after layers stop ... n_layer - 1, the ones below taken from where they are held."""
        plan = plan_at(lm.sidecar, ids.shape[1], method, fresh=True)
        plans = layer_plans((plan,), lm.sidecar, lm.weights, keep)
        stream, state = self._below(lm, ids)
        state = state.clone()
        stream = run_layers(
            lm.weights, lm.config, stream, state, plans, protected=keep, first=self.stop, backend=lm.backend
        )
        state.length += ids.shape[1]
        state.plan, state.method, state.protected = plan, method, keep  # steps that follow filter as after a prefill
        return logits(lm.weights, lm.config, stream.residual[:, -keep:]), state

    def _below(self, lm: LM, ids: Tensor) -> tuple[Stream, State]:
        key = hashlib.sha256(repr(ids.shape).encode() + ids.contiguous().numpy().tobytes()).digest()
        if key not in self._held:
            ids, state = ids.to(lm.device), lm.new_state(len(ids))
            plain = [PLAIN] * len(lm.weights.layers)
            stream = embed(lm.weights, lm.config, ids, state.length, None)
            stream = run_layers(lm.weights, lm.config, stream, state, plain, stop=self.stop, backend=lm.backend)
            size = stream.residual.nbytes + state.ssm.nbytes + state.conv.nbytes
            if not self.stop or self._bytes + size > _HELD_BYTES:
                return stream, state
            self._held[key], self._bytes = (stream, state), self._bytes + size
        return self._held[key]
