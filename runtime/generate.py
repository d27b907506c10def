"""Generation as generators: each yields as soon as a piece is certain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import CheckpointError
from .tokenizer import eos_id

if TYPE_CHECKING:
    from .model import LM


def sample(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None) -> Tensor:
    """logits (B, V) -> token (B,). Temperature 0 is greedy; top_p keeps the smallest set of mass >= top_p."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, places = logits.sort(descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        logits = logits.scatter(-1, places, ordered.masked_fill(before >= top_p, -torch.inf))
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[..., 0]


def generate_ids(
    lm: LM,
    prompt: Sequence[int] | Tensor,
    max_new_tokens: int = 128,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    stop: Sequence[int] = (),
    method: str = "auto",
    chunk: int | None = None,
) -> Iterator[int]:
    """Token ids that continue `prompt` (one sequence of ids); neither EOS nor a stop id is yielded."""
    ids = torch.as_tensor(prompt, dtype=torch.int64).reshape(1, -1)
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or max_new_tokens < 0:
        raise ValueError("need temperature >= 0, top_k >= 0, 0 < top_p <= 1 and max_new_tokens >= 0")
    generator = None
    if seed is not None:
        generator = torch.Generator(lm.device)
        generator.manual_seed(seed)
    ends = {*stop, _eos(lm)}
    out = lm.prefill(ids, method=method, chunk=chunk)
    logits, state = out.logits[:, -1], out.state
    for made in range(max_new_tokens):
        token = sample(logits, temperature, top_k, top_p, generator)
        if int(token) in ends:
            return
        yield int(token)
        if made + 1 < max_new_tokens:
            logits, state = lm.step(token, state)


def _eos(lm: LM) -> int | None:
    if lm.config.eos_token_id is not None:
        return lm.config.eos_token_id
    try:
        return eos_id(lm.tokenizer, lm.config)
    except CheckpointError:  # ids in, ids out needs no tokenizer
        return None


def generate_text(
    lm: LM, prompt: str, max_new_tokens: int = 128, *, stop: str | Sequence[str] = (), **options: object
) -> Iterator[str]:
    """Text that continues `prompt`, in pieces. A piece is held back while it may be half a character or a stop."""
    ids = lm.tokenizer.encode(prompt).ids
    if not ids:
        raise ValueError("the prompt is empty; give at least one character")
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    made: list[int] = []
    given = 0  # characters already yielded
    for token in generate_ids(lm, ids, max_new_tokens, **options):  # type: ignore[arg-type]
        made.append(token)
        text = lm.tokenizer.decode(made)
        cut = min((at for at in map(text.find, stops) if at >= 0), default=None)
        if cut is not None:
            if cut > given:
                yield text[given:cut]
            return
        safe = len(text.rstrip("\ufffd")) - _partial_stop(text, stops)
        if safe > given:
            yield text[given:safe]
            given = safe
    text = lm.tokenizer.decode(made)
    if len(text) > given:
        yield text[given:]


def _partial_stop(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop string."""
    return max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
