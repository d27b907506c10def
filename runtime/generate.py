"""Generation as generators: each yields as soon as a piece is certain."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .detokenize import StopCutter, TextStream
from .errors import CheckpointError
from .sampling import Sampling, penalise, sample
from .state import State
from .tokenizer import eos_id

if TYPE_CHECKING:
    from .model import LM

Prompt = str | Sequence[int] | Tensor


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
    if isinstance(prompt, Tensor):
        return prompt.dim() == 2 and prompt.shape[0] > 1
    if isinstance(prompt, str) or len(prompt) == 0:
        return False
    return isinstance(prompt[0], str | Sequence) or (isinstance(prompt[0], Tensor) and prompt[0].dim() > 0)


def generate_ids(lm: LM, prompt: Sequence[int] | Tensor, max_new_tokens: int = 128, **options: Any) -> Iterator[int]:
    """Token ids that continue `prompt` (one sequence of ids); neither EOS nor a stop id is yielded."""
    ids = torch.as_tensor(prompt, dtype=torch.int64).flatten()
    for row in _batch_ids(lm, [ids], max_new_tokens, **options):
        if row[0] is not None:
            yield row[0]


def generate_text(lm: LM, prompt: str, max_new_tokens: int = 128, **options: Any) -> Iterator[str]:
    """Text that continues `prompt`, in pieces. A piece is held back while it may be half a character or a stop."""
    for row in _batch_text(lm, [prompt], max_new_tokens, **options):
        yield row[0]


def generate_batch(lm: LM, prompts: Sequence[Prompt], max_new_tokens: int = 128, **options: Any) -> Iterator[list[Any]]:
    """Several prompts at once: each piece is a list with one entry a row, "" (ids: None) where there is nothing."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) == len(prompts):
        return _batch_text(lm, texts, max_new_tokens, **options)
    if texts:
        raise ValueError("prompts are all texts or all ids; generate from the two kinds in calls of their own")
    rows = [torch.as_tensor(row, dtype=torch.int64) for row in prompts]
    return _batch_ids(lm, rows, max_new_tokens, **options)


def _batch_ids(
    lm: LM,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    *,
    stop: Sequence[int] = (),
    watch: Generation | None = None,
    **options: Any,
) -> Iterator[list[int | None]]:
    watch = Generation() if watch is None else watch
    try:
        yield from _tokens(lm, prompts, max_new_tokens, stop, set(), watch, **options)
    except KeyboardInterrupt:
        watch.interrupted = True


def _batch_text(
    lm: LM,
    prompts: Sequence[str],
    max_new_tokens: int,
    *,
    stop: str | Sequence[str] = (),
    watch: Generation | None = None,
    **options: Any,
) -> Iterator[list[str]]:
    watch = Generation() if watch is None else watch
    encoded = [torch.tensor(one.ids, dtype=torch.int64) for one in lm.tokenizer.encode_batch(list(prompts))]
    if not all(len(ids) for ids in encoded):
        raise ValueError("the prompt is empty; give at least one character")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    rows = [(TextStream(lm.tokenizer), StopCutter(stops)) for _ in prompts]
    ended: set[int] = set()
    try:
        for tokens in _tokens(lm, encoded, max_new_tokens, (), ended, watch, **options):
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


def _tokens(
    lm: LM,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    stop: Sequence[int],
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
    batch, device = len(prompts), lm.device
    generators = [None if seed is None else torch.Generator(device).manual_seed(seed + b) for b in range(batch)]
    ends = {*stop, _eos(lm)}
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
        drawn = _draw(logits, alive, settings, seen, generators)
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


def _draw(
    logits: Tensor,
    alive: Sequence[int],
    settings: Sampling,
    seen: Tensor | None,
    generators: Sequence[torch.Generator | None],
) -> list[int]:
    if seen is not None:
        logits = penalise(logits, seen[list(alive)], settings.repetition_penalty)
    if settings.temperature == 0:
        found: list[int] = logits.argmax(-1).tolist()
        return found
    draw = (settings.temperature, settings.top_k, settings.top_p)
    return [int(sample(logits[k : k + 1], *draw, generators[b], settings.min_p)) for k, b in enumerate(alive)]


def _eos(lm: LM) -> int | None:
    if lm.config.eos_token_id is not None:
        return lm.config.eos_token_id
    try:
        return eos_id(lm.tokenizer, lm.config)
    except CheckpointError:  # ids in, ids out needs no tokenizer
        return None
