"""The histogram's Triton kernel and its torch oracle: the same integers to the last bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from longscan.calibrate.measure.histogram import BINS, SEGMENTS, bin_of, edge_bits, grid_shift, grid_top, histogram

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def grid_of(columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    high, low = (end.contiguous().view(torch.int32) for end in (columns.amax(1), columns.amin(1)))
    shift = grid_shift(high, low)
    return grid_top(high, shift), shift


def values(tokens: int, scale: float) -> torch.Tensor:
    columns = F.softplus(torch.randn(5, tokens, generator=torch.Generator().manual_seed(tokens)) * scale - 3)
    columns[1, ::3] = 0.0
    return columns


@pytest.mark.parametrize("tokens", [1, 1000, 1024, 2500])
@pytest.mark.parametrize("scale", [0.01, 2.0, 8.0])
def test_triton_counts_as_torch_does(tokens, scale):
    columns = values(tokens, scale)
    top, shift = grid_of(columns)
    counts, mass = histogram(columns, top, shift, "torch")
    on_device = histogram(*(t.to(DEVICE) for t in (columns, top, shift)), "triton")
    assert torch.equal(counts, on_device[0].cpu()) and torch.equal(mass, on_device[1].cpu())
    assert (counts.sum(1) == tokens).all()
    assert mass.tolist() == pytest.approx((columns.double().sum(1) * 2.0**36).tolist(), rel=1e-9, abs=tokens)


@pytest.mark.parametrize("scale", [0.01, 2.0, 8.0])
def test_a_value_lies_between_the_edges_of_its_bin(scale):
    columns = values(2500, scale)
    top, shift = grid_of(columns)
    bins = bin_of(columns.view(torch.int32), top, shift)
    lower, upper = (edge.view(torch.float32).gather(1, bins) for edge in edge_bits(top, shift))
    inside = (lower <= columns) & (columns <= upper)
    assert inside[columns > columns.amax() * 2.0**-14].all()  # the lowest bin takes all that lies below the grid
    assert (bins[~inside] == BINS - 1).all() and (columns <= upper).all()


def test_bins_are_an_unbroken_ladder_that_doubles_its_step():
    high = torch.tensor([1.5, 1e-3]).view(torch.int32)
    shift = torch.tensor([15, 3], dtype=torch.int32)
    top = grid_top(high, shift)
    lower, upper = edge_bits(top, shift)
    assert torch.equal(lower[:, :-1], upper[:, 1:] + 1) and (high <= upper[:, 0]).all()
    widths = ((upper + 1 - lower) >> shift[:, None])[0].view(SEGMENTS, -1)
    assert all((row == 2**k).all() for k, row in enumerate(widths))
    assert torch.equal(bin_of(lower, top, shift), torch.arange(BINS).expand(2, -1))


def test_a_wider_grid_is_a_union_of_finer_bins():
    """Every bin of a narrow grid lies in one bin of any grid that includes it, so moving counts loses nothing."""
    g = torch.Generator().manual_seed(0)
    ends = torch.rand(4, 500, generator=g) * torch.tensor([1.0, 1e-2, 1.0, 1e-2])[:, None]
    old_high, old_low = torch.maximum(ends[0], ends[1]), torch.minimum(ends[0], ends[1])
    high, low = torch.maximum(old_high, ends[2]), torch.minimum(old_low, ends[3])
    old, new = (grid_of(torch.stack(pair, 1)) for pair in ((old_high, old_low), (high, low)))
    lower, upper = edge_bits(*old)
    assert torch.equal(bin_of(lower, *new), bin_of(upper, *new))
