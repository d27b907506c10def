"""The tasks of `texts.recall_tasks` asked of a model: prompts of an exact length, greedy generation, share answered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...runtime.checkpoint.tokenizer import inside_ids
from ...runtime.model import LM
from ..search.shared_layers import read_all
from ..search.tasks import greedy
from ..texts.prompts import haystack, insert
from ..texts.recall_tasks import Asked, ask


@dataclass(frozen=True)
class Trials:
    """Prompts of one length: prompts (n, S) int64, what each asks for, and the tokens to generate after it."""

    prompts: Tensor
    asked: tuple[Asked, ...]
    tokens: tuple[int, ...]


def recall_trials(
    lm: LM, documents: Sequence[Tensor], length: int, depths: Sequence[float], task: str, seed: int
) -> Trials:
    """One prompt of exactly `length` tokens for each of `depths`, where the first text of what is asked for stands.

    The chain it begins goes on after it, the others stand anywhere. documents: token ids of the haystack's texts.
    Raises UserError if the length is too short to hold the task, or no document is long enough.
    """
    rng = random.Random(f"{task} {seed} {length}")
    prompts, every, tokens = [], [], []
    for depth in depths:
        asked = ask(task, rng)
        flat = [text for chain in asked.chains for text in chain]
        question, said, *written = inside_ids(lm.tokenizer, [asked.question, asked.said, *flat])
        text = haystack(documents, length, sum(map(len, [question, *written])), rng, task)
        parts, inserts = iter(written), []
        for i, chain in enumerate(asked.chains):
            place = round(depth * len(text)) if i == 0 else rng.randrange(len(text) + 1)
            places = [place, *sorted(rng.randrange(place, len(text) + 1) for _ in chain[1:])]
            inserts += list(zip(places, parts))  # as many parts as the chain has, because places end first
        prompts.append(insert(text, sorted(inserts, key=lambda each: each[0])) + question)
        every.append(asked)
        tokens.append(len(said))
    return Trials(torch.tensor(prompts), tuple(every), tuple(tokens))


def share_answered(lm: LM, trials: Trials, method: str, batch_tokens: int) -> Tensor:
    """(n,) float64: of each prompt's answers, those in the text generated after it was read with `method`."""
    found: list[float] = []
    for prompts in trials.prompts.split(max(1, batch_tokens // trials.prompts.shape[1])):
        logits, state = read_all(lm, prompts, method, 1)
        at = slice(len(found), len(found) + len(prompts))
        texts = greedy(lm, logits[:, -1], state, trials.tokens[at])
        found += [asked.share_answered(text) for asked, text in zip(trials.asked[at], texts)]
    return torch.tensor(found, dtype=torch.float64)
