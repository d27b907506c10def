"""A hybrid of Mamba and attention behind LM's interface: transformers' model, attached, to calibrate and generate."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.config import ModelConfig, eos_ids_of
from ..checkpoint.source import Source
from ..errors import CheckpointError
from ..model import LM
from ..reading.observer import Observer
from ..reading.prefill import Output, in_given_columns, is_open
from ..reading.prompts import Ids, as_batch, check_counts, check_ids, check_rows
from ..reading.state import State, check_kind, check_origin
from ..sidecar.plan import Plan
from .attached import Attached
from .call import Settings
from .families import family_of
from .hosts import cache_name, reading_of, remember
from .identity import stored_fingerprint

_log = logging.getLogger("longscan.runtime")


def load_hybrid(
    source: Source, device: torch.device | None, dtype: torch.dtype, backend: str, filter_decode: bool | None
) -> HybridLM:
    """Read a checkpoint with transformers, onto one device, or spread over all of them by accelerate (None).

    Raises CheckpointError where transformers is missing or cannot read it.
    """
    try:
        import transformers
        from transformers.utils import is_accelerate_available
    except ImportError as error:
        raise CheckpointError(f"{source.name} is read through transformers; pip install transformers") from error
    if device is None and not is_accelerate_available():
        raise CheckpointError(f"{source.name} is spread over devices by accelerate; pip install accelerate")
    how = {"device_map": "auto"} if device is None else {}
    if dtype == torch.float64:  # of which torch's grouped product, transformers' default for experts, has none
        how["experts_implementation"] = "eager"
    try:
        model, found = transformers.AutoModelForCausalLM.from_pretrained(
            source.folder, dtype=dtype, local_files_only=True, output_loading_info=True, **how
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"transformers cannot read {source.name} ({reason[:160]}); download it again") from error
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random values
        raise CheckpointError(f"{source.name}: no tensor {missing[0]}; give a complete checkpoint")
    if unknown := sorted(found["unexpected_keys"]):
        _log.warning("%s: transformers does not use %s (%d such tensors)", source.name, unknown[0], len(unknown))
    said = model.config
    config = ModelConfig(
        layout="transformers",
        d_model=said.hidden_size,
        n_layer=said.num_hidden_layers,
        norm_epsilon=said.layer_norm_epsilon if hasattr(said, "layer_norm_epsilon") else said.rms_norm_eps,
        rms_norm=True,
        residual_in_fp32=False,
        tie_embeddings=bool(said.tie_word_embeddings),
        eos_token_ids=eos_ids_of(source.folder, said.eos_token_id),
        train_length=getattr(said, "train_length", None),
        neox_vocabulary=False,
    )
    family = family_of(model)
    try:
        attached = Attached(model.eval(), family, None, "auto", backend, filter_decode)
    except ValueError as error:
        raise CheckpointError(f"{source.name}: {error}") from error
    attached.view.fingerprint = stored_fingerprint(source, model, family)
    if device is not None:
        model.to(device=device)
    if broken := [
        name for name, tensor in model.named_parameters() if not (tensor.is_meta or torch.isfinite(tensor).all())
    ]:
        raise CheckpointError(
            f"{source.name}: {broken[0]} holds NaN, infinite values or some too large for {dtype}; "
            "download the model again, or load it in float32"
        )
    return HybridLM(source, config, attached)


@dataclass
class HybridState:
    """What a hybrid remembers: transformers' cache, which grows with the tokens read (attention keeps them all).

    mask: (B, tokens so far) int64, 0 = left padding
    """

    cache: Any
    mask: Tensor

    @property
    def reading(self) -> State:
        """How far each row was read, and by which plan."""
        found = reading_of(self.cache)
        assert found is not None
        return found

    @property
    def length(self) -> Tensor:
        """(B,) int64, tokens read so far."""
        return self.reading.length

    @property
    def batch(self) -> int:
        return self.reading.batch

    @property
    def plan(self) -> Plan | tuple[Plan, ...]:
        return self.reading.plan

    def clone(self) -> HybridState:
        """An independent copy: continue one prompt in several ways."""
        return HybridState(copy.deepcopy(self.cache), self.mask)

    def rows(self, index: Sequence[int]) -> HybridState:
        """An independent copy of some rows of the batch, in the given order."""
        at = torch.tensor(list(index), dtype=torch.int64, device=self.mask.device)
        other = self.clone()
        other.cache.reorder_cache(at)
        remember(other.cache, self.reading.rows(index))
        return HybridState(other.cache, self.mask[at])


class HybridLM(LM):
    """LM's interface over an attached model: it filters and scales, but never decimates, and its state grows."""

    hybrid = True

    def __init__(self, source: Source, config: ModelConfig, attached: Attached):
        weights: Any = attached.view
        super().__init__(source, config, weights, None, attached.backend, attached.settings.filter_decode)
        self._attached, self.rotary = attached, attached.rotary is not None
        self._cache = cache_name(attached.model.forward, type(attached.model).__name__)

    @torch.inference_mode()
    def prefill(  # type: ignore[override]  # a state of its own kind, which check_kind holds
        self,
        ids: Ids,
        *,
        state: HybridState | None = None,
        total_length: float | None = None,
        chunk: int | None = None,
        method: str = "auto",
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 1,
        observer: Observer | None = None,
        on_chunk: Callable[[int], None] | None = None,
    ) -> Output:
        """Read a prompt; see LM.prefill. Rows of unequal length are read in one piece; no open-ended reading."""
        if total_length is not None and math.isinf(total_length):
            raise ValueError("a hybrid's cache grows with the text: give a finite total_length, or none")
        check_counts(chunk, logits_to_keep, total_length)
        batch, mask = as_batch(ids, attention_mask)
        batch, mask, padding = check_ids(batch.to(self.device), mask, self.weights.embedding.shape[0])
        if state is not None:
            check_kind(state, HybridState)
            check_origin(state.reading, self.fingerprint, self._digest)
            check_rows(state.batch, batch)
        L = batch.shape[1]
        even = mask is None and (state is None or len(state.length.unique()) == 1)  # all rows end at one length
        size = chunk if even and chunk is not None and observer is None else L
        if total_length is None and size < L and (state is None or state.reading.total is None):
            total_length = L + (0 if state is None else int(state.length.max()))
        now = batch.new_ones(batch.shape) if mask is None else mask.long()
        into = HybridState(None, now[:, :0]) if state is None else state.clone()
        logits = self.weights.embedding.new_empty(len(batch), 0, 0)
        with self._attached.reading(self._settings(method, decoding=False), total_length, observer):
            for start in range(0, L, size):
                piece = slice(start, start + size)
                found = self._call(batch[:, piece], now[:, piece], into, logits_to_keep)
                logits = found if start == 0 else torch.cat([logits, found], 1)[:, -logits_to_keep:]
                if on_chunk is not None:
                    on_chunk(int(now[:, piece].sum()))
        self._sign(into.reading)
        seen = into.mask[:, -logits.shape[1] :]
        places = (into.mask.cumsum(1) - 1)[:, -logits.shape[1] :].where(seen > 0, -1)
        out = Output(logits, places, into, into.plan)  # type: ignore[arg-type]  # likewise
        return out if logits_to_keep else in_given_columns(out, padding)

    @torch.inference_mode()
    def step(self, token: Tensor, state: HybridState) -> tuple[Tensor, HybridState]:  # type: ignore[override]  # as prefill
        """One token a row; see LM.step."""
        check_kind(state, HybridState)
        check_origin(state.reading, self.fingerprint, self._digest)
        if is_open(state.reading):
            raise ValueError(
                f"the prompt of total_length {state.reading.total} is not complete; prefill its last piece first"
            )
        if token.shape != state.length.shape:
            raise ValueError(f"token has shape {tuple(token.shape)}, expected {tuple(state.length.shape)}")
        ids = token.to(self.device)[:, None]
        with self._attached.reading(self._settings(state.reading.method, decoding=True), None, None):
            logits = self._call(ids, torch.ones_like(ids), state, 1)[:, 0]
        self._sign(state.reading)
        return logits, state

    def _settings(self, method: str, *, decoding: bool) -> Settings:
        return Settings(self.sidecar, self._growth, method, self.filter_decode, decoding)

    def _sign(self, reading: State) -> None:
        """Note whose the state is; see check_origin."""
        reading.fingerprint, reading.sidecar = self.fingerprint, self._digest

    def _call(self, ids: Tensor, mask: Tensor, state: HybridState, keep: int) -> Tensor:
        """The model itself: logits (B, keep or all, V) float32; `state` is updated in place."""
        state.mask = torch.cat([state.mask, mask], 1)
        out = self._attached.model(
            input_ids=ids,
            attention_mask=state.mask,
            position_ids=(state.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :],
            use_cache=True,
            logits_to_keep=keep,
            **{self._cache: state.cache},
        )
        state.cache = out[self._cache]
        logits: Tensor = out.logits
        return logits if logits.dtype == torch.float64 else logits.float()

    def new_state(self, batch: int) -> State:
        """Refused: the cache of a hybrid begins with its first token."""
        raise ValueError("a hybrid has no state before its first token; prefill one")

    def load_state(self, path: Any) -> State:
        """Refused: transformers' caches are not saved."""
        raise ValueError("the state of a hybrid cannot be saved or loaded; read the prompt again")
