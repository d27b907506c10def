"""Decimation as a running selection: the tokens that may still survive, merged chunk by chunk.

A token that is not among the n best of the tokens up to now will not be among the n best of more tokens, and ties
go to the earlier token at every selection as they do in one global selection. So keeping the n best so far and the
last r, and selecting again from these and the newcomers, ends with exactly what one selection over the whole prompt
keeps. Newcomers wait until they are as many as the survivors: memory stays O(P + chunk), and each token is copied a
constant number of times, however small the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..sidecar.plan import MIN_KEEP, kept


class Tokens(NamedTuple):
    """What a layer's scan and residual need of some tokens, in time order: (B, K) or (B, K, features)."""

    score: Tensor  # (B, K) float32
    positions: Tensor  # (B, K) int64, each token's place in its prompt
    residual: Tensor  # (B, K, M)
    x: Tensor  # these as layer.Inputs, (B, K, features)
    delta: Tensor
    B: Tensor
    C: Tensor
    z: Tensor

    def part(self, start: int, stop: int) -> Tokens:
        """Tokens start ... stop - 1 of each row, as views."""
        return Tokens(*(t[:, start:stop] for t in self))

    def rows(self, index: Tensor) -> Tokens:
        """The rows of the batch that `index` (b,) names."""
        return Tokens(*(t[index] for t in self))


def select(score: Tensor, keep: int, protected: int) -> Tensor:
    """Positions (B, n + r) ascending: the n best-scored of the first L - r tokens, then the last r.

    Ties go to the earlier token. score: (B, L) float32.
    """
    L = score.shape[1]
    n, r = kept(L, keep, protected), min(protected, L)
    best = score[:, : L - r].sort(dim=1, descending=True, stable=True).indices[:, :n].sort(dim=1).values
    last = torch.arange(L - r, L, device=score.device).expand(score.shape[0], r)
    return torch.cat([best, last], dim=1)


def merge(
    waiting: Sequence[Tokens], new: Tokens, keep: int, protected: int, *, final: bool = False
) -> tuple[Tokens, ...]:
    """What waits after the `new` tokens, pieces in time order: never more than 2 (n + r) + L tokens of L newcomers.

    After the prompt's `final` tokens it is one piece: the survivors, n + r of them (fewer if so few came).
    """
    pieces = (*waiting, new)
    if not final and sum(piece.score.shape[1] for piece in pieces) <= 2 * (max(keep, MIN_KEEP) + protected):
        return pieces
    tokens = concatenate(pieces)
    if kept(tokens.score.shape[1], keep, protected) + protected >= tokens.score.shape[1]:
        return (tokens,)
    index = select(tokens.score, keep, protected)
    return (Tokens(*(gather(t, index) for t in tokens)),)


def concatenate(pieces: Sequence[Tokens]) -> Tokens:
    """Pieces that follow one another, as one."""
    return pieces[0] if len(pieces) == 1 else Tokens(*(torch.cat(same, 1) for same in zip(*pieces)))


def gather(t: Tensor, index: Tensor) -> Tensor:
    """(B, L) or (B, L, features) -> the tokens at `index` (B, K)."""
    return t.gather(1, index if t.dim() == 2 else index[:, :, None].expand(-1, -1, t.shape[2]))
