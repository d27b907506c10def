"""Windows lie inside one document, share no target, are spread evenly and come out the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longscan.calibrate.errors import UserError
from longscan.calibrate.texts.windows import at_length, pg19_windows, token_windows


def numbered(*sizes: int) -> list[torch.Tensor]:
    """Documents whose tokens say where they stand: document * 1_000_000 + position."""
    return [torch.arange(size) + 1_000_000 * i for i, size in enumerate(sizes)]


@pytest.mark.parametrize("count", [1, 7, 40, 10_000])
def test_inside_documents_and_no_target_twice(count: int) -> None:
    docs = numbered(500, 97, 64, 63, 2000)
    windows = token_windows(docs, 64, count, tail=10, seed=3)
    capacity = sum(1 + (len(doc) - 64) // 10 for doc in docs if len(doc) >= 64)
    assert windows.shape == (min(count, capacity), 64) and windows.dtype == torch.int64
    assert (windows.diff(dim=1) == 1).all(), "a window straddles two documents"
    targets = windows[:, -10:].reshape(-1)
    assert len(targets.unique()) == len(targets)
    assert not (windows // 1_000_000 == 3).any(), "document 3 is one token short"


def test_spread_over_documents_and_over_each() -> None:
    windows = token_windows(numbered(5000, 5000, 5000), 100, 30, tail=20, seed=0)
    owner = windows[:, 0] // 1_000_000
    assert owner.bincount().tolist() == [10, 10, 10]
    assert sorted(owner[:3].tolist()) == [0, 1, 2], "a first few windows come from different documents"
    ends = windows[owner == 0, -1].sort().values
    assert ends[0] < 1000 and ends[-1] > 4000 and ends.diff().max() < 1100


def test_a_short_document_gives_what_it_has() -> None:
    owner = token_windows(numbered(120, 5000), 100, 20, tail=20, seed=0)[:, 0] // 1_000_000
    assert owner.bincount().tolist() == [2, 18]


def test_every_end_can_be_drawn() -> None:
    last = {int(token_windows(numbered(70), 64, 1, tail=8, seed=seed)[0, -1]) for seed in range(200)}
    assert last == set(range(63, 70))


def test_the_seed_decides() -> None:
    docs = numbered(900, 700)
    once, again, other = (token_windows(docs, 64, 8, tail=8, seed=seed) for seed in (1, 1, 2))
    assert once.equal(again) and not once.equal(other)
    arrays = [doc.numpy() for doc in docs]
    assert token_windows(arrays, 64, 8, tail=8, seed=1).equal(once)
    assert token_windows([np.asarray(doc, dtype=np.int32) for doc in arrays], 64, 8, tail=8, seed=1).equal(once)


def test_no_document_long_enough() -> None:
    with pytest.raises(UserError, match=r"no document has 64 tokens, the longest has 63; .*--lengths.*--texts"):
        token_windows(numbered(63, 12), 64, 1, tail=8, seed=0)
    with pytest.raises(UserError, match="longest has 0"):
        token_windows([], 64, 1, tail=8, seed=0)


def test_paired_lengths_score_the_same_targets() -> None:
    windows = token_windows(numbered(900, 700), 256, 6, tail=16, seed=0)
    short = at_length(windows, 32)
    assert short.shape == (6, 32) and short[:, -16:].equal(windows[:, -16:])
    with pytest.raises(ValueError, match="257"):
        at_length(windows, 257)


@pytest.mark.parametrize(("tokens", "S"), [(1000, 100), (1005, 100), (150, 100), (101, 100), (100, 100), (50, 100)])
def test_pg19_protocol(tokens: int, S: int) -> None:
    step = max(10, (tokens - S) // 10)
    starts, start = [], 0
    while start < tokens - S:
        starts.append(start)
        start += step
    windows = pg19_windows(torch.arange(tokens), S)
    assert windows.shape == (len(starts), S) and windows[:, 0].tolist() == starts
    assert (windows.diff(dim=1) == 1).all()
