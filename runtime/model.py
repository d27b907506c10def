"""A model with its sidecar: prefill, step, generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from .checkpoint.config import ModelConfig
from .checkpoint.source import Source
from .checkpoint.tokenizer import load_tokenizer
from .decode.graph import Plans, StepGraph, is_graphed
from .families.weights import Weights
from .generate.loop import generate_batch, generate_ids, generate_text, is_batch
from .reading.forward import step_layers
from .reading.growth import Growth
from .reading.observer import Observer
from .reading.prefill import Output, Reading, in_given_columns, is_open, prefill
from .reading.prompts import Ids, as_batch, check_counts, check_ids, check_rows
from .reading.rows import prefill_by_length
from .reading.state import State, check_kind, check_origin, read_state
from .sidecar.digest import digest
from .sidecar.plan import Plan
from .sidecar.sidecar import Sidecar, filters_decode

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class LM:
    """A model with its sidecar. Build it with `load`.

    hybrid: attention among the Mamba layers. It filters and scales, but its layers cannot be run one by one
    rotary: that attention has rotary positions, which a sidecar's factors may stretch
    cuda_graph: whether steps on a GPU replay a CUDA graph; may be changed at any time
    """

    hybrid = False
    rotary = False
    cuda_graph = True

    def __init__(
        self,
        source: Source,
        config: ModelConfig,
        weights: Weights,
        sidecar: Sidecar | None,
        backend: str,
        filter_decode: bool | None = None,
    ):
        self.source, self.config, self.weights, self.backend = source, config, weights, backend
        self.sidecar, self.filter_decode = sidecar, filter_decode

    @property
    def device(self) -> torch.device:
        return self.weights.embedding.device

    @property
    def fingerprint(self) -> str:
        """sha256 of what a sidecar depends on; see the sidecar's `model_fingerprint`."""
        return self.weights.fingerprint

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer (a `tokenizers.Tokenizer`), read on first use."""
        return load_tokenizer(self.source, self.config)

    def with_sidecar(self, sidecar: Sidecar | None) -> LM:
        """The same weights under another sidecar; nothing is copied.

        Raises SidecarError for one of another model, or with factors on rotary positions that this one does not have.
        """
        if sidecar is not None:
            sidecar.check_model(self.fingerprint, self.source.name)
            sidecar.check_rotary(self.rotary)
        other = copy(self)
        other.sidecar = sidecar
        for kept in ("_digest", "_growth"):
            other.__dict__.pop(kept, None)
        return other

    def new_state(self, batch: int) -> State:
        """Zero state for `batch` sequences."""
        w, layer = self.weights, self.weights.layers[0]
        ssm_dtype = torch.float64 if w.embedding.dtype == torch.float64 else torch.float32
        n_layer, device = len(w.layers), self.device
        conv = torch.zeros(n_layer, batch, *layer.conv_shape, dtype=w.embedding.dtype, device=device)
        ssm = torch.zeros(n_layer, batch, *layer.state_shape, dtype=ssm_dtype, device=device)
        length = torch.zeros(batch, dtype=torch.int64)
        return State(conv, ssm, length, Plan("none", 0), fingerprint=self.fingerprint, sidecar=self._digest)

    @cached_property
    def _digest(self) -> str:
        return digest(self.sidecar)

    @cached_property
    def _growth(self) -> Growth | None:
        return None if self.sidecar is None else Growth(self.sidecar, self.weights)

    @torch.inference_mode()
    def prefill(
        self,
        ids: Ids,
        *,
        state: State | None = None,
        total_length: float | None = None,
        chunk: int | None = None,
        method: str = "auto",
        attention_mask: Tensor | None = None,
        logits_to_keep: int = 1,
        observer: Observer | None = None,
        on_chunk: Callable[[int], None] | None = None,
    ) -> Output:
        """Read a prompt.

        ids: (B, L) int64, or a list of prompts of any lengths (1-D tensors or lists)
        attention_mask: (B, L), 0 at padding, left or right of a row's text; each row has its own S, plan and g
        state: go on from here (the given state is left as it was); None starts afresh. A prompt that is complete may be
            gone on from under another sidecar of the same model
        total_length: S of a prompt given in several calls; the first call fixes plan and S. math.inf: open-ended,
            the filter follows the growing length
        chunk: tokens a pass through the layers; any value gives the same result, a small one saves memory. None picks
            one from the device's memory. A pass that runs out of memory is repeated with half as many
        method: "auto" (the sidecar's choice at S) or one to force; at or below the training length always "none"
        logits_to_keep: rows of logits wanted, counted from the end and safe from decimation; 0 = all still present
        on_chunk: called after each pass with the tokens it read, over all rows

        Raises ValueError on ids, mask, chunk or total_length that make no sense and on a state of another model's, and
        SidecarError if the sidecar holds no tables for the forced method.
        """
        check_counts(chunk, logits_to_keep, total_length)
        batch, mask = as_batch(ids, attention_mask)
        batch, mask, padding = check_ids(batch.to(self.device), mask, self.weights.embedding.shape[0])
        if state is not None:
            check_kind(state, State)
            check_origin(state, self.fingerprint, self._digest)
            check_rows(state.batch, batch)
            state = replace(state.clone(), sidecar=self._digest)

        reading = Reading(
            weights=self.weights, config=self.config, sidecar=self.sidecar, growth=self._growth, backend=self.backend,
            fresh=state is None, method=method, total_length=total_length, chunk=chunk, logits_to_keep=logits_to_keep,
            observer=observer, on_chunk=on_chunk,
        )  # fmt: skip
        if state is not None:
            out = prefill(reading, batch, mask, state)
        elif mask is not None and total_length is None and self._decimates(mask.sum(1).tolist(), method):
            out = prefill_by_length(batch, mask, lambda ids: prefill(reading, ids, None, self.new_state(len(ids))))
        else:
            out = prefill(reading, batch, mask, self.new_state(batch.shape[0]))
        decimated = any(plan.decimate for plan in out.state.plans)
        return out if logits_to_keep or decimated else in_given_columns(out, padding)

    def _decimates(self, lengths: Sequence[int], method: str) -> bool:
        return self.sidecar is not None and any(self.sidecar.plan(n, method).decimate for n in lengths)

    @torch.inference_mode()
    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """One token a row: token (B,) int64 -> logits (B, V) float32 and the state, updated in place.

        With a sidecar each token is filtered with g at the length reached, by the method the prompt was read with;
        unfiltered, as published, if the model was loaded with filter_decode=False or the sidecar says so.
        On a GPU the second step of a state is captured as a CUDA graph, which it and those after it replay, unless
        the model was loaded with cuda_graph=False.
        Raises ValueError while a promised prompt is unfinished, and on a state of another model's.
        """
        check_kind(state, State)
        check_origin(state, self.fingerprint, self._digest)
        if is_open(state):
            raise ValueError(f"the prompt of total_length {state.total} is not complete; prefill its last piece first")
        if token.shape != state.length.shape:
            raise ValueError(f"token has shape {tuple(token.shape)}, expected {tuple(state.length.shape)}")
        filtered = self._growth is not None and filters_decode(self.sidecar, self.filter_decode)
        plans = self._growth.layer_plans(state) if filtered and self._growth is not None else None

        def run(token: Tensor, plans: Plans) -> Tensor:
            return step_layers(self.weights, self.config, token, state, self.backend, plans)

        if not (self.cuda_graph and is_graphed(self.backend, state.ssm)):
            logits = run(token.to(self.device), plans)
        else:
            bound = self.weights, state.conv, state.ssm
            if state.graph is None or not state.graph.fits(*bound, plans):
                state.graph = StepGraph(*bound, token, plans)
            logits = state.graph.step(run, token, plans)
        state.length += 1
        state.sidecar = self._digest
        return logits, state

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a sequence of str, too
        self, prompt: str, max_new_tokens: int = ..., **o: object
    ) -> Iterator[str]: ...
    @overload
    def generate(self, prompt: Sequence[int] | Tensor, max_new_tokens: int = ..., **o: object) -> Iterator[int]: ...
    @overload
    def generate(self, prompt: Sequence[str], max_new_tokens: int = ..., **o: object) -> Iterator[list[str]]: ...
    def generate(self, prompt, max_new_tokens=128, **options):
        """Continue a prompt, piece by piece: str in, str out; ids in, ids out. Ends at each of the model's EOS ids.

        A text that begins here gets the tokens that the tokenizer puts before a text (BOS); after `state` it is the
        middle of one and gets none. Nothing is put behind a prompt. Ids are read as they are given.

        A list of prompts (strings, or sequences of ids, of any lengths) is continued as one batch: each piece is a
        list with one entry a row, "" (ids: None) where a row has nothing to give or has ended. Rows end on their own.

        options: temperature 0.0 (greedy), top_k 0, top_p 1.0, min_p 0.0, repetition_penalty 1.0, seed None (row b of a
        batch draws with seed + b; None: one drawn from torch's default CPU generator), stop () (ids, and for texts
        strings, special tokens such as "<|im_end|>" among them), state None (go on from there; left as it was), method
        "auto", chunk None, watch None (a Generation to be kept up to date). Ctrl-C while it computes ends the
        generation with what was made; `watch.interrupted` tells.
        Raises ValueError on a prompt without tokens, impossible options, and logits that are NaN or infinite.
        """
        if is_batch(prompt):
            return generate_batch(self, prompt, max_new_tokens, **options)
        if isinstance(prompt, str):
            return generate_text(self, prompt, max_new_tokens, **options)
        return generate_ids(self, prompt, max_new_tokens, **options)

    def load_state(self, path: str | Path) -> State:
        """Read a state written by State.save. Raises ValueError if it belongs to another model or sidecar."""
        state = read_state(path, self.fingerprint, self._digest, self.device)
        expected = self.new_state(state.batch)
        if state.conv.shape != expected.conv.shape or state.ssm.shape != expected.ssm.shape:
            raise ValueError(f"{path} was saved by another model; load the model it belongs to")
        state.conv, state.ssm = state.conv.to(expected.conv.dtype), state.ssm.to(expected.ssm.dtype)
        return state
