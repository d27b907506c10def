"""`load(model, sidecar)` -> LM: prefill, step, generate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from .config import ModelConfig, is_hybrid
from .digest import digest
from .errors import CheckpointError
from .forward import step_layers
from .generate import generate_batch, generate_ids, generate_text, is_batch
from .growth import Growth
from .observer import Observer
from .plan import Plan
from .prefill import Output, in_given_columns, is_open, prefill
from .prompts import Ids, as_batch, check_ids
from .rows import prefill_by_length
from .sidecar import Sidecar, filters_decode
from .source import Source, is_hub_id, is_known_anywhere, locate
from .state import State, read_state
from .tokenizer import load_tokenizer
from .weights import Weights, read_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load(
    model: str | Path,
    sidecar: str | Path | Sidecar | None = None,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    backend: str = "auto",
    filter_decode: bool | None = None,
) -> LM:
    """Load a Mamba language model (Mamba-1, Mamba-2 or Falcon-Mamba; Zamba2 and Bamba through transformers) and, if
    given, its sidecar.

    model: `demo`, `demo-mamba2`, a local folder, or a Hub id, in the state-spaces or the transformers layout; or
        the Hub id of a sidecar that `calibrate push` made, alone: the model is then the one it was made for
    sidecar: a file, a Hub id (`user/name`, `user/name@revision`) or a Sidecar; None is the plain model
    revision: of the Hub repository `model`; of the sidecar's where the model is on disk
    dtype: "auto" is float32 on a CPU and bfloat16 on a GPU; the SSM state is float32 in both
    filter_decode: filter generated tokens too, with the sidecar's g at the length reached; False as published; None as
        the sidecar says, which is True unless a published recipe made it

    Raises CheckpointError (model files) and SidecarError (sidecar malformed, or made for another model).
    """
    place = pick_device(device)
    source = locate(str(model), revision)
    if source.is_sidecar():
        own = Sidecar.read(source.folder)
        source = _base_model(own, str(model))
        sidecar = own if sidecar is None else sidecar
    path = source.find("config.json")
    if path is None:
        raise CheckpointError(f"{model} has no config.json; give a folder with a Mamba checkpoint")
    lm = _load_plain(source, path, place, pick_dtype(dtype, place), backend, filter_decode)
    if isinstance(sidecar, str | Path):
        sidecar = Sidecar.read(sidecar, None if is_hub_id(source.name) else revision)
    if sidecar is None:
        return lm
    sidecar.check_model(lm.fingerprint, source.name)
    return lm.with_sidecar(sidecar)


def _load_plain(
    source: Source, path: Path, device: torch.device, dtype: torch.dtype, backend: str, filter_decode: bool | None
) -> LM:
    """The model without a sidecar. Hybrids with attention are read through transformers."""
    if is_hybrid(path):
        from .attach.hybrid import load_hybrid

        return load_hybrid(source, device, dtype, backend, filter_decode)
    config = ModelConfig.read(path)
    return LM(source, config, read_weights(source, config, device, dtype), None, backend, filter_decode)


def _base_model(sidecar: Sidecar, given: str) -> Source:
    """The model a sidecar was made for, from its metadata."""
    name, revision = sidecar.metadata["base_model"], sidecar.metadata["base_model_revision"]
    if not is_known_anywhere(name):
        raise CheckpointError(
            f"{given} is the sidecar of the local model {name!r}; load that model's folder with sidecar={given!r}"
        )
    return locate(name, revision or None)


def pick_device(device: str) -> torch.device:
    """ "auto" is the GPU if there is one. Raises ValueError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; use auto, cpu or cuda") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device here; use --device cpu")
    return place


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """ "auto", a torch dtype or its name. Raises ValueError for anything that is no float type."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return found


class LM:
    """A model with its sidecar. Build it with `load`.

    hybrid: attention among the Mamba layers. It filters and scales, but its layers cannot be run one by one
    """

    hybrid = False

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
        """The same weights under another sidecar; nothing is copied."""
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
        length = torch.zeros(batch, dtype=torch.int64, device=device)
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
        state: go on from here (the given state is left as it was); None starts afresh
        total_length: S of a prompt given in several calls; the first call fixes plan and S. math.inf: open-ended,
            the filter follows the growing length
        chunk: tokens a pass through the layers; any value gives the same result, a small one saves memory. None picks
            one from the device's memory. A pass that runs out of memory is repeated with half as many
        method: "auto" (the sidecar's choice at S) or one to force; at or below the training length always "none"
        logits_to_keep: rows of logits wanted, counted from the end and safe from decimation; 0 = all still present
        on_chunk: called after each pass with the tokens it read, over all rows

        Raises ValueError on ids, mask, chunk or total_length that make no sense, and SidecarError if the sidecar
        holds no tables for the forced method.
        """
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk is {chunk}; give at least 1 token, or None to have one picked")
        if logits_to_keep < 0:
            raise ValueError(f"logits_to_keep is {logits_to_keep}; give 0 (all) or more")
        batch, mask = as_batch(ids, attention_mask)
        batch, mask, padding = check_ids(batch.to(self.device), mask, self.weights.embedding.shape[0])
        if state is not None and state.batch != batch.shape[0]:
            raise ValueError(f"ids have {batch.shape[0]} rows and the state {state.batch}; give one state row a prompt")

        def read(rows: Tensor, mask: Tensor | None, into: State) -> Output:
            return prefill(
                self.weights,
                self.config,
                self.sidecar,
                rows,
                mask,
                into,
                fresh=state is None,
                total_length=total_length,
                chunk=chunk,
                method=method,
                logits_to_keep=logits_to_keep,
                observer=observer,
                growth=self._growth,
                on_chunk=on_chunk,
                backend=self.backend,
            )

        if state is not None:
            out = read(batch, mask, state.clone())
        elif mask is not None and total_length is None and self._decimates(mask.sum(1).tolist(), method):
            out = prefill_by_length(batch, mask, lambda rows: read(rows, None, self.new_state(rows.shape[0])))
        else:
            out = read(batch, mask, self.new_state(batch.shape[0]))
        decimated = any(plan.decimate for plan in out.state.plans)
        return out if logits_to_keep or decimated else in_given_columns(out, padding)

    def _decimates(self, lengths: Sequence[int], method: str) -> bool:
        return self.sidecar is not None and any(self.sidecar.plan(n, method).decimate for n in lengths)

    @torch.inference_mode()
    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """One token a row: token (B,) int64 -> logits (B, V) float32 and the state, updated in place.

        With a sidecar each token is filtered with g at the length reached, by the method the prompt was read with;
        unfiltered, as published, if the model was loaded with filter_decode=False or the sidecar says so.
        Raises ValueError while a promised prompt is unfinished.
        """
        if is_open(state):
            raise ValueError(f"the prompt of total_length {state.total} is not complete; prefill its last piece first")
        if token.shape != state.length.shape:
            raise ValueError(f"token has shape {tuple(token.shape)}, expected {tuple(state.length.shape)}")
        filtered = self._growth is not None and filters_decode(self.sidecar, self.filter_decode)
        plans = self._growth.layer_plans(state) if filtered and self._growth is not None else None
        logits = step_layers(self.weights, self.config, token.to(self.device), state, self.backend, plans)
        state.length += 1
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
        batch draws with seed + b), stop () (ids, and for texts strings, special tokens such as "<|im_end|>" among
        them), state None (go on from there; left as it was), method "auto", chunk None, watch None (a Generation to
        be kept up to date). Ctrl-C while it computes ends the generation with what was made; `watch.interrupted` tells.
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
