"""Prompts as one batch: lists padded on the left, ids and masks checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Ids = Tensor | Sequence[Sequence[int]] | Sequence[Tensor]  # (B, L) int64, or B prompts of any lengths


def as_batch(ids: Ids, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A list of prompts (1-D tensors, or lists of ids) -> ids (B, L) int64 and left padding (B, L) bool."""
    if isinstance(ids, Tensor):
        return ids, mask
    if mask is not None:
        raise ValueError("attention_mask goes with ids of one shape; a list of prompts is padded by itself")
    rows = [row if isinstance(row, Tensor) else torch.tensor(row, dtype=torch.int64) for row in ids]
    if not rows or any(row.numel() == 0 for row in rows):
        raise ValueError("a prompt is empty; give each at least one token")
    if any(row.dim() != 1 or row.dtype != torch.int64 for row in rows):
        raise ValueError("a list of prompts must hold 1-D int64 tensors or lists of ids; use torch.tensor([...])")
    longest = max(len(row) for row in rows)
    batch, mask = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest, dtype=torch.bool)
    for b, row in enumerate(rows):
        batch[b, longest - len(row) :] = row
        mask[b, longest - len(row) :] = True
    return batch, mask


def check_ids(ids: Tensor, mask: Tensor | None, vocabulary: int) -> tuple[Tensor, Tensor | None]:
    """Validate ids (B, L) and the left-padding mask. Columns all rows pad are cut off; the mask comes back as bool,
    or as None if nothing is padded."""
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ValueError(f"ids must be (B, L) int64, found {tuple(ids.shape)} {ids.dtype}; use torch.tensor([[...]])")
    if ids.numel() == 0:
        raise ValueError("the prompt is empty; give at least one token")
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise ValueError(f"token ids must lie in 0 ... {vocabulary - 1}; is this the model's own tokenizer?")
    if mask is None:
        return ids, None
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, expected {tuple(ids.shape)}")
    mask = mask.to(ids.device).bool()
    if (mask[:, 1:] < mask[:, :-1]).any() or not mask[:, -1].all():
        raise ValueError("attention_mask must be left padding (0 ... 0 1 ... 1 in every row); pad on the left")
    longest = int(mask.sum(1).max())
    ids, mask = ids[:, -longest:], mask[:, -longest:]
    return ids, None if bool(mask.all()) else mask
