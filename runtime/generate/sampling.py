"""From logits to a token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults are greedy. Raises ValueError on impossible values."""

    temperature: float = 0.0  # 0 = greedy
    top_k: int = 0  # only the k likeliest; 0 = all
    top_p: float = 1.0  # the smallest set of probability >= top_p
    min_p: float = 0.0  # only tokens at least min_p times as likely as the likeliest
    repetition_penalty: float = 1.0  # logits of tokens seen before are divided (> 0) or multiplied (< 0) by it

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < math.inf) or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError("need a finite temperature >= 0, top_k >= 0 and 0 < top_p <= 1")
        if not 0 <= self.min_p <= 1 or not 1e-30 <= self.repetition_penalty <= 1e30:  # beyond, float32 overflows
            raise ValueError("need 0 <= min_p <= 1 and a repetition_penalty from 1e-30 to 1e30")


def draw(logits: Tensor, settings: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """logits (B, V) -> a token a row, each drawn with the row's own generator; one answer is waited for, not B.

    Raises ValueError unless the likeliest token of every row has a number: no NaN, no infinity.
    """
    sound = logits.amax(-1).isfinite()
    if settings.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        logits = logits.where(sound[:, None], 0.0)  # nothing could be drawn from these
        tokens = torch.cat([sample(row[None], settings, own) for row, own in zip(logits, generators)])
    found: list[list[int]] = torch.stack([tokens, sound.long()]).tolist()
    if not all(found[1]):
        raise ValueError(
            "the model's logits hold NaN or infinity: its weights are broken or overflow this dtype; "
            "try float32, or download the model again"
        )
    return found[0]


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Repetition penalty (arXiv 1909.05858). logits (B, V); seen (B, V) bool, the tokens read or made so far."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def sample(logits: Tensor, settings: Sampling, generator: torch.Generator) -> Tensor:
    """logits (B, V) -> token (B,), drawn at a temperature above 0; top_p keeps the smallest set of mass >= top_p."""
    # From the likeliest down and by a float32 above 0: no temperature is so small that anything overflows upwards.
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / max(settings.temperature, torch.finfo(torch.float32).tiny)
    if 0 < settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1:
        ordered, places = logits.sort(descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        beyond = before >= settings.top_p
        beyond[..., 0] = False  # even where top_p is 0 as a float32
        logits = logits.scatter(-1, places, ordered.masked_fill(beyond, -torch.inf))
    probability = logits.softmax(-1)
    if settings.min_p > 0:
        probability = probability * (probability >= settings.min_p * probability.amax(-1, keepdim=True))
    return torch.multinomial(probability, 1, generator=generator)[..., 0]
