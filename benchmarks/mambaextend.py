"""MambaExtend's form of delta scaling: one searched power of S / L a layer, on all its channels.

    python benchmarks/mambaextend.py run --method scale ...

A `calibrate` whose method `scale` is that; ablation.py runs it. Powers are found by coordinate search over blocks of
layers, from the best that all share, on the same held-out texts, in place of its authors' optimiser.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longscan.calibrate.commands import cli
from longscan.calibrate.search.candidates import Candidate, ScalePick
from longscan.calibrate.search.search import Search


@dataclass(frozen=True)
class ByLayer(ScalePick):
    """each: one power a layer, in the place of `power` and `top`."""

    each: tuple[float, ...] = ()

    def powers(self, furthest: Tensor) -> Tensor:
        return torch.tensor(self.each)[:, None].expand(furthest.shape)


def by_layer(*powers: float) -> Candidate:
    return Candidate(scale=ByLayer(0.0, 1.0, powers))


def search_by_layer(self: Search, length: int) -> Candidate:
    """A power for each block of layers, while moving one of them helps."""
    even = [by_layer(*[power] * len(self.layers)) for power in (0.0, *self.recipe.scale.powers)]
    best = self.scoring.halving(even, length)[0]
    for _ in self._blocks():
        assert isinstance(best.scale, ByLayer)
        tried = [best]
        for block in self._blocks():
            for step in (-0.25, 0.25):
                tried.append(by_layer(*(p + step if i in block else p for i, p in enumerate(best.scale.each))))
        found = self.scoring.halving(tried, length)[0]
        if found == best:
            break
        best = found
    return best


if __name__ == "__main__":
    Search._scale = search_by_layer  # its search in the place of ours over powers and shares
    cli()
