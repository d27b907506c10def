"""Padding stands left of a text inside the project, and left or right of it outside.

A row of a mask is one run of real tokens; a hole inside a text is refused. Rows are rolled so that their texts end
together: then the last tokens of all rows stand in the same columns, whatever the rows' lengths.

    B batch   L columns
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Padding(NamedTuple):
    """mask: (B, L) bool, padding on the left. shift: (B,) columns each row was rolled to the right; None = none."""

    mask: Tensor
    shift: Tensor | None

    def rolled(self, t: Tensor) -> Tensor:
        """(B, L, ...), as it was given -> padding on the left."""
        return t if self.shift is None else _roll(t, self.shift)

    def back(self, t: Tensor) -> Tensor:
        """The reverse of `rolled`."""
        return t if self.shift is None else _roll(t, -self.shift)


def read_padding(mask: Tensor) -> Padding | None:
    """A mask (B, L), True or 1 at real tokens, padding left or right or both; None where nothing is padded.

    Rows without any token are let through. Raises ValueError for a hole inside a text, and for values not 0 or 1.
    """
    if mask.dtype != torch.bool and bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("attention_mask must hold 1 at tokens and 0 at padding, and nothing else")
    mask = mask.bool()
    if bool(mask.all()):
        return None
    starts = mask[:, :1].sum(1) + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
    if int(starts.max()) > 1:
        raise ValueError(
            f"attention_mask has a hole in row {int(starts.argmax())}; padding may stand left or right of a text, not "
            "inside it"
        )
    L = mask.shape[1]
    after = (mask * torch.arange(1, L + 1, device=mask.device)).amax(1)  # the column behind each row's last token
    shift = torch.where(after > 0, L - after, 0)
    if not bool(shift.any()):
        return Padding(mask, None)
    return Padding(_roll(mask, shift), shift)


def _roll(t: Tensor, shift: Tensor) -> Tensor:
    """(B, L, ...) -> each row rolled along L by its own shift (B,)."""
    L = t.shape[1]
    index = ((torch.arange(L, device=t.device) - shift.to(t.device)[:, None]) % L).view(-1, L, *[1] * (t.dim() - 2))
    return t.gather(1, index.expand_as(t))
