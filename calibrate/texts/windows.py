"""Windows of tokens: what is measured, searched and evaluated on. No window straddles two documents."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

TokenDoc = Tensor | np.ndarray


def token_windows(token_docs: Sequence[TokenDoc], length: int, count: int, *, tail: int, seed: int) -> Tensor:
    """Up to `count` windows of `length` tokens -> (n, length) int64, n < count where the texts hold no more.

    The last `tail` tokens of a window are its targets: no token is a target twice, contexts may overlap. The windows
    are spread evenly over the documents long enough and, inside one, evenly over its length; any first
    few of them are spread over the documents as well. The same seed gives the same windows.

    Raises:
        UserError: no document has `length` tokens.
    """
    if not 1 <= tail <= length or count < 1:
        raise ValueError(f"need 1 <= tail <= length and count >= 1, not tail {tail}, length {length}, count {count}")
    docs = [torch.as_tensor(doc, dtype=torch.int64) for doc in token_docs if len(doc) >= length]
    if not docs:
        raise UserError(
            f"no document has {length} tokens, the longest has {longest_of(token_docs)}; "
            "give shorter --lengths or longer documents with --texts"
        )
    draw = random.Random(seed)
    draw.shuffle(docs)
    quotas = _quotas([1 + (len(doc) - length) // tail for doc in docs], count)
    ends = [_ends(len(doc), length, quota, tail, draw) for doc, quota in zip(docs, quotas)]
    rounds = range(max(quotas))
    return torch.stack([doc[end[i] - length : end[i]] for i in rounds for doc, end in zip(docs, ends) if i < len(end)])


def longest_of(token_docs: Sequence[TokenDoc]) -> int:
    """Tokens of the longest document."""
    return max(map(len, token_docs), default=0)


def at_length(windows: Tensor, length: int) -> Tensor:
    """The last `length` tokens of paired windows (n, max_length) -> (n, length): the same targets, less context."""
    if not 1 <= length <= windows.shape[1]:
        raise ValueError(f"cannot take {length} tokens of windows of {windows.shape[1]}")
    return windows[:, windows.shape[1] - length :]


def pg19_windows(doc_tokens: TokenDoc, S: int) -> Tensor:
    """The published protocol, one book: windows at 0, s, 2s, ... < len - S, s = max(10, (len - S) // 10) -> (n, S).

    A book of S tokens or fewer gives none.
    """
    tokens = torch.as_tensor(doc_tokens, dtype=torch.int64)
    left = len(tokens) - S
    if left <= 0:
        return tokens.new_empty((0, S))
    return torch.stack([tokens[start : start + S] for start in range(0, left, max(10, left // 10))])


def _quotas(capacities: list[int], count: int) -> list[int]:
    """How many windows each document gives: as equal as the capacities allow, `count` in all if they hold it."""
    quotas = [0] * len(capacities)
    left = min(count, sum(capacities))
    while left:
        open_docs = [i for i, capacity in enumerate(capacities) if quotas[i] < capacity]
        share = max(1, left // len(open_docs))
        for i in open_docs:
            given = min(share, capacities[i] - quotas[i], left)
            quotas[i] += given
            left -= given
    return quotas


def _ends(tokens: int, length: int, quota: int, tail: int, draw: random.Random) -> list[int]:
    """Where the windows of one document end: at least `tail` apart, one drawn in each equal part of the free play."""
    play = tokens - length - (quota - 1) * tail
    ends = []
    for i in range(quota):
        offset = min(int((i + draw.random()) * (play + 1) / quota), play)
        ends.append(length + i * tail + offset)
    draw.shuffle(ends)
    return ends
