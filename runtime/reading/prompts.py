"""Prompts as one batch: lists padded, ids and masks checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .padding import Padding, read_padding

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


def check_counts(chunk: int | None, logits_to_keep: int, total_length: float | None) -> None:
    """Raises ValueError where a prompt cannot be read in such pieces or be so long, or such logits not be kept."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; give at least 1 token, or None to have one picked")
    if logits_to_keep < 0:
        raise ValueError(f"logits_to_keep is {logits_to_keep}; give 0 (all) or more")
    check_total(total_length)


def check_total(total_length: float | None) -> None:
    """Raises ValueError for a total_length that is no length: None, infinity and whole numbers from 1 on are."""
    if total_length is not None and not (total_length >= 1 and (math.isinf(total_length) or total_length % 1 == 0)):
        raise ValueError(f"total_length is {total_length}; give a whole number of tokens, math.inf, or None")


def check_rows(rows: int, batch: Tensor) -> None:
    """Raises ValueError unless a state of so many rows goes with ids (B, L)."""
    if rows != batch.shape[0]:
        raise ValueError(f"ids have {batch.shape[0]} rows and the state {rows}; give one state row a prompt")


def check_ids(ids: Tensor, mask: Tensor | None, vocabulary: int) -> tuple[Tensor, Tensor | None, Padding | None]:
    """Validate ids (B, L) and the padding mask (B, L): left, right or both.

    Returns the ids with padding on the left, without columns that all rows pad; their mask, None if nothing is padded;
    and the padding as it was given.
    """
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ValueError(f"ids must be (B, L) int64, found {tuple(ids.shape)} {ids.dtype}; use torch.tensor([[...]])")
    if ids.numel() == 0:
        raise ValueError("the prompt is empty; give at least one token")
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
        raise ValueError(f"token ids must lie in 0 ... {vocabulary - 1}; is this the model's own tokenizer?")
    if mask is None:
        return ids, None, None
    if mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, expected {tuple(ids.shape)}")
    padding = read_padding(mask.to(ids.device))
    if padding is None:
        return ids, None, None
    lengths = padding.mask.sum(1)
    if not bool(lengths.all()):
        raise ValueError(f"row {int(lengths.argmin())} of attention_mask holds no token; give each row at least one")
    longest = int(lengths.max())
    mask = padding.mask[:, -longest:]
    return padding.rolled(ids)[:, -longest:], None if bool(mask.all()) else mask, padding
