"""Documents -> token ids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...runtime.checkpoint.tokenizer import plain_ids
from ...runtime.model import LM
from ..console import say
from ..errors import UserError
from .sources import Texts

_TOGETHER = 16  # documents: the tokenizer works on them in parallel, and holds some hundred bytes a token meanwhile


@dataclass(frozen=True)
class Enough:
    """How many tokens are worth encoding: so many `documents` of `length` tokens or more, `tokens` in all of these."""

    documents: int
    length: int
    tokens: int

    def reached(self, found: list[Tensor]) -> bool:
        sizes = [len(ids) for ids in found if len(ids) >= self.length]
        return len(sizes) >= self.documents and sum(sizes) >= self.tokens


def encode(lm: LM, texts: Texts, enough: Enough | None = None) -> list[Tensor]:
    """Token ids of each document, (T,) int64: without BOS, because windows begin in the middle of a text.

    enough: where to stop; the documents left are told on stderr
    Raises UserError where the model has no embedding for a token.
    """
    documents, found = list(texts.documents), list[Tensor]()
    for start in range(0, len(documents), _TOGETHER):
        part = plain_ids(lm.tokenizer, documents[start : start + _TOGETHER])
        found += [torch.tensor(ids, dtype=torch.int64) for ids in part]
        if enough and enough.reached(found):
            break
    if len(found) < len(documents):
        say(f"{texts.name}: {len(found)} of {len(documents)} documents are enough here; the others are left out")
    largest = max((int(ids.max()) for ids in found if len(ids)), default=0)
    vocabulary = len(lm.weights.embedding)
    if largest >= vocabulary:
        raise UserError(
            f"the texts hold token {largest} and the model knows {vocabulary}; is this the model's own tokenizer.json?"
        )
    return found
