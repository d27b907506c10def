"""Generation as generators: each yields as soon as a piece is certain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..checkpoint.config import ModelConfig
from ..checkpoint.tokenizer import eos_ids, inside_ids, plain_ids, special_ids, start_ids
from ..errors import CheckpointError
from ..reading.prefill import Output
from ..reading.state import State
from .detokenize import StopCutter, TextStream, special_stops
from .sampling import Sampling, draw, penalise

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Prompt = str | Sequence[int] | Tensor


class Reader(Protocol):
    """What generation asks of a model; an LM is one."""

    config: ModelConfig

    @property
    def device(self) -> torch.device: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def prefill(self) -> Callable[..., Output]: ...
    @property
    def step(self) -> Callable[..., tuple[Tensor, Any]]: ...


@dataclass
class Generation:
    """What a generation has done so far; give one as `watch`. Subclass it to see the prompt being read."""

    prompt_tokens: int = 0
    read: int = 0
    made: int = 0
    steps: int = 0  # passes through the model after the prompt's
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    interrupted: bool = False  # by Ctrl-C

    def on_read(self, tokens: int) -> None:
        """Called after each pass over the prompt with the tokens it read."""
        self.read += tokens


def is_batch(prompt: Any) -> bool:
    """Whether `prompt` is several prompts; ids (1, L) count as one."""
    if hasattr(prompt, "ndim"):  # a tensor or an array
        return prompt.ndim == 2 and prompt.shape[0] > 1
    if isinstance(prompt, str) or len(prompt) == 0:
        return False
    return isinstance(prompt[0], str | Sequence) or getattr(prompt[0], "ndim", 0) > 0


def generate_ids(
    lm: Reader, prompt: Sequence[int] | Tensor, max_new_tokens: int = 128, **options: Any
) -> Iterator[int]:
    """Token ids that continue `prompt` (one sequence of ids); neither EOS nor a stop id is yielded."""
    for row in _batch_ids(lm, [_as_ids(prompt).flatten()], max_new_tokens, **options):
        if row[0] is not None:
            yield row[0]


def generate_text(lm: Reader, prompt: str, max_new_tokens: int = 128, **options: Any) -> Iterator[str]:
    """Text that continues `prompt`, in pieces. A piece is held back while it may be half a character or a stop."""
    for row in _batch_text(lm, [prompt], max_new_tokens, **options):
        yield row[0]


def generate_batch(
    lm: Reader, prompts: Sequence[Prompt], max_new_tokens: int = 128, **options: Any
) -> Iterator[list[Any]]:
    """Several prompts at once: each piece is a list with one entry a row, "" (ids: None) where there is nothing."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) == len(prompts):
        return _batch_text(lm, texts, max_new_tokens, **options)
    if texts:
        raise ValueError("prompts are all texts or all ids; generate from the two kinds in calls of their own")
    return _batch_ids(lm, [_as_ids(row) for row in prompts], max_new_tokens, **options)


def _as_ids(prompt: Any) -> Tensor:
    ids = torch.as_tensor(prompt)
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise ValueError(f"token ids are whole numbers, found {ids.dtype}; give int64")
    return ids.long()


def _batch_ids(
    lm: Reader,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    *,
    stop: int | Sequence[int] = (),
    watch: Generation | None = None,
    **options: Any,
) -> Iterator[list[int | None]]:
    watch = Generation() if watch is None else watch
    texts, ends = _stops(stop)
    if texts:
        raise ValueError(f"a prompt of ids is ended by ids, and stop holds the text {texts[0]!r}; give token ids")
    try:
        yield from _tokens(lm, prompts, max_new_tokens, ends, set(), watch, **options)
    except KeyboardInterrupt:
        watch.interrupted = True


def _batch_text(
    lm: Reader,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: str | int | Sequence[str | int] = (),
    watch: Generation | None = None,
    state: State | None = None,
    **options: Any,
) -> Iterator[list[str]]:
    watch = Generation() if watch is None else watch
    encoded = _encode(lm, prompts, state)
    stops, ends = _stops(stop)
    ends |= special_stops(stops, special_ids(lm.tokenizer))
    rows = [(TextStream(lm.tokenizer, ids), StopCutter(stops)) for ids in encoded]
    ended: set[int] = set()
    given = [torch.tensor(ids, dtype=torch.int64) for ids in encoded]
    try:
        for tokens in _tokens(lm, given, max_new_tokens, ends, ended, watch, state=state, **options):
            pieces = [""] * len(rows)
            for b, token in enumerate(tokens):
                if token is not None:
                    text, cutter = rows[b]
                    pieces[b] = cutter.push(text.push(token))
                    if cutter.stopped:
                        ended.add(b)
            if any(pieces):
                yield pieces
    except KeyboardInterrupt:
        watch.interrupted = True
    left = ["" if c.stopped else c.push(t.flush()) + ("" if c.stopped else c.flush()) for t, c in rows]
    if any(left):
        yield left


def _encode(lm: Reader, prompts: Sequence[str], state: State | None) -> list[list[int]]:
    """Ids of prompts that begin a text, or go on from a state. Raises ValueError where nothing is left of one."""
    if not all(prompts):
        raise ValueError("the prompt is empty; give at least one character")
    begins = state is None or not bool(state.length.any())
    encoded = (start_ids if begins else inside_ids)(lm.tokenizer, prompts)
    for prompt, ids in zip(prompts, encoded):
        if len(ids) < 8 and not plain_ids(lm.tokenizer, [prompt])[0]:  # BOS alone, or nothing
            raise ValueError(f"the tokenizer finds no token in the prompt {prompt[:20]!r}; give another text")
    return encoded


def _stops(stop: Any) -> tuple[list[str], set[int]]:
    """Stop strings and stop ids."""
    given = [stop] if isinstance(stop, str | int) else list(stop)
    return [one for one in given if isinstance(one, str)], {int(one) for one in given if not isinstance(one, str)}


def _tokens(
    lm: Reader,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    stop: set[int],
    ended: set[int],
    watch: Generation,
    *,
    seed: int | None = None,
    method: str = "auto",
    chunk: int | None = None,
    state: State | None = None,
    **sampling: Any,
) -> Iterator[list[int | None]]:
    """The loop: a list of one token a row, None for rows that have ended. The reader ends rows by adding to `ended`."""
    settings = Sampling(**sampling)
    if max_new_tokens < 0:
        raise ValueError(f"need max_new_tokens >= 0, found {max_new_tokens}")
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise ValueError(f"need a seed of at most 63 bits, found {seed}")
    batch, device = len(prompts), lm.device
    # Never the device's own generator: another thread that captures a CUDA graph may hold it.
    first = int(torch.randint(2**62, ())) if seed is None else seed
    generators = [torch.Generator(device).manual_seed(first + b) for b in range(batch)]
    ends = stop | set(_eos(lm))
    watch.prompt_tokens = sum(map(len, prompts))
    began = time.perf_counter()
    out = lm.prefill(list(prompts), method=method, chunk=chunk, state=state, on_chunk=watch.on_read)
    logits, state = out.logits[:, -1], out.state
    seen = None
    if settings.repetition_penalty != 1:
        seen = torch.zeros(batch, logits.shape[-1], dtype=torch.bool, device=device)
        for b, ids in enumerate(prompts):
            seen[b, ids.to(device)] = True
    watch.prefill_seconds = time.perf_counter() - began
    alive = list(range(batch))  # the rows that `logits` and `state` hold
    for made in range(max_new_tokens):
        began = time.perf_counter()
        if seen is not None:
            logits = penalise(logits, seen[alive], settings.repetition_penalty)
        drawn = draw(logits, settings, [generators[b] for b in alive])
        row: list[int | None] = [None] * batch
        for b, token in zip(alive, drawn):
            if token in ends:
                ended.add(b)
            else:
                row[b] = token
                watch.made += 1
                if seen is not None:
                    seen[b, token] = True
        watch.decode_seconds += time.perf_counter() - began
        if any(token is not None for token in row):
            yield row
        going = [k for k, b in enumerate(alive) if b not in ended]
        if not going or made + 1 == max_new_tokens:
            return
        began = time.perf_counter()
        if len(going) < len(alive):
            state, alive = state.rows(going), [alive[k] for k in going]
        logits, state = lm.step(torch.tensor([row[b] for b in alive], device=device), state)
        watch.steps += 1
        watch.decode_seconds += time.perf_counter() - began


def _eos(lm: Reader) -> tuple[int, ...]:
    if lm.config.eos_token_ids:
        return lm.config.eos_token_ids
    try:
        return eos_ids(lm.tokenizer, lm.config)
    except CheckpointError:  # ids in, ids out needs no tokenizer
        return ()
