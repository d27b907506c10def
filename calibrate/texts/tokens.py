"""Documents -> token ids."""

from __future__ import annotations

import torch
from torch import Tensor

from ...runtime.checkpoint.tokenizer import plain_ids
from ...runtime.model import LM
from ..errors import UserError
from .sources import Texts


def encode(lm: LM, texts: Texts) -> list[Tensor]:
    """Token ids of each document, (T,) int64: without BOS, because windows begin in the middle of a text.

    Raises UserError where the model has no embedding for a token.
    """
    found = [torch.tensor(ids, dtype=torch.int64) for ids in plain_ids(lm.tokenizer, list(texts.documents))]
    largest = max((int(ids.max()) for ids in found if len(ids)), default=0)
    vocabulary = len(lm.weights.embedding)
    if largest >= vocabulary:
        raise UserError(
            f"the texts hold token {largest} and the model knows {vocabulary}; is this the model's own tokenizer.json?"
        )
    return found
