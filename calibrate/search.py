"""Which filter, which decimation: found at a pivot length first, then refined at every length from its neighbour's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .arena import Arena
from .console import progress, say
from .measure import LayerMeasurement
from .picks import NONE, Candidate, DecimatePick, FilterPick, global_channels
from .recipe import Recipe

_BLOCKS = 8  # layers are dropped from the filter in at most this many blocks


@dataclass(frozen=True)
class LengthPicks:
    """What the search found at one length; None where the recipe's method excludes it."""

    length: int
    filter: Candidate | None
    decimate: Candidate | None
    both: Candidate | None


def theta_candidates(layers: Sequence[LayerMeasurement], recipe: Recipe) -> list[float]:
    """log thetas that differ in the channels they call global, from the recipe's list and quantiles of the decays."""
    decays = torch.cat([layer.decay() for layer in layers])
    found = [float(torch.tensor(theta, dtype=torch.float64).log()) for theta in recipe.filter.theta]
    found += [float(decays.quantile(q)) for q in recipe.filter.theta_quantiles]
    distinct: dict[int, float] = {}
    for log_theta in sorted(found):
        channels = sum(int(global_channels(layer, log_theta).sum()) for layer in layers)
        if channels:  # a filter without a global channel is no filter
            distinct.setdefault(channels, log_theta)
    return list(distinct.values())


def layer_sets(n_layer: int, recipe: Recipe) -> list[tuple[int, ...]]:
    """Sets of filtered layers to start from: all, or all but the first block."""
    wanted = recipe.filter.layers
    if isinstance(wanted, (list, tuple)):
        return [tuple(i for i in wanted if i < n_layer)]
    everything = tuple(range(n_layer))
    if wanted == "all":
        return [everything]
    return [everything, everything[max(1, n_layer // _BLOCKS) :]]


class Search:
    """Drives an Arena. The order of the search is fixed, so equal inputs give equal picks."""

    def __init__(self, arena: Arena, recipe: Recipe, lengths: Sequence[int]) -> None:
        self.arena, self.recipe, self.lengths = arena, recipe, sorted(lengths)
        self.L = arena.train_length

    def run(self, methods: set[str]) -> list[LengthPicks]:
        """Picks for every length. methods: those of filter, decimate, both that may be used."""
        pivot = self.lengths[len(self.lengths) // 2]
        filters = self._filters(pivot) if methods & {"filter", "both"} else {}
        decimations = self._decimations(pivot) if methods & {"decimate", "both"} else {}
        found = []
        for length in progress(self.lengths, "combining", unit="length"):
            f, d = filters.get(length), decimations.get(length, [])
            both = self._both(f, d, length) if f and d and "both" in methods else None
            found.append(LengthPicks(length, f, d[0] if d else None, both))
        return found

    # -- filter ------------------------------------------------------------------------------------------------

    def _filters(self, pivot: int) -> dict[int, Candidate]:
        best = self._pivot_filter(pivot)
        found = {pivot: best}
        order = [n for n in self.lengths if n > pivot] + [n for n in reversed(self.lengths) if n < pivot]
        for length in progress(order, "filter by length", unit="length"):
            near = min(found, key=lambda n: abs(n - length))
            assert found[near].filter is not None
            found[length] = self._shares(found[near].filter, length)  # type: ignore[arg-type]
        return found

    def _pivot_filter(self, pivot: int) -> Candidate:
        """Coordinate search: share and layers, then theta, then blocks of layers, then the share finely."""
        layers, recipe = self.arena.layers, self.recipe
        thetas = theta_candidates(layers, recipe)
        start = thetas[len(thetas) // 2]
        mass = recipe.filter.mass
        shares = sorted({min(1.0, c) for c in (*mass.law, *(m * self.L / pivot for m in mass.factors or ()))})
        grid = [Candidate(FilterPick(start, s, c)) for s in layer_sets(len(layers), recipe) for c in shares]
        pick = self.arena.halving(grid, pivot)[0].filter
        assert pick is not None
        others = [Candidate(replace(pick, log_theta=theta)) for theta in thetas]
        pick = self.arena.halving([Candidate(pick), *others], pivot)[0].filter
        assert pick is not None
        if recipe.filter.layers == "search":
            pick = self._drop_blocks(pick, pivot)
        return self._shares(pick, pivot)

    def _drop_blocks(self, pick: FilterPick, length: int) -> FilterPick:
        """Greedy: leave a block of layers unfiltered while that helps."""
        n_layer = len(self.arena.layers)
        size = max(1, n_layer // _BLOCKS)
        while len(pick.layers) > size:
            blocks = {i // size for i in pick.layers}
            less = [replace(pick, layers=tuple(i for i in pick.layers if i // size != b)) for b in sorted(blocks)]
            candidates = [Candidate(pick), *(Candidate(one) for one in less if one.layers)]
            best = self.arena.halving(candidates, length, survivors=1)[0].filter
            assert best is not None
            if best == pick:
                break
            pick = best
        return pick

    def _shares(self, pick: FilterPick, length: int) -> Candidate:
        """Refine the kept share around a neighbour's: a factor two either way, then a factor 1.2."""
        least = self.L / length / 4
        for steps in ((0.5, 0.71, 1.0, 1.41, 2.0), (0.84, 1.0, 1.19)):
            tried = [min(1.0, max(least, pick.share * step)) for step in steps]
            best = self.arena.halving([Candidate(replace(pick, share=round(s, 6))) for s in tried], length)[0]
            assert best.filter is not None
            pick = best.filter
        return Candidate(pick)

    # -- decimation --------------------------------------------------------------------------------------------

    def _decimations(self, pivot: int) -> dict[int, list[Candidate]]:
        """Best first: at every length the few best of the pivot's ranking, ranked again."""
        ranked = self.arena.halving(self._decimation_grid(pivot), pivot, survivors=6)
        found = {}
        for length in progress(self.lengths, "decimation by length", unit="length"):
            fits = [c for c in ranked if c.decimate and max(c.decimate.keep()) < length]
            if not fits:  # always carry a usable one, so that it can be forced
                smallest = replace(ranked[0].decimate, base=self.L // 2)  # type: ignore[type-var]
                fits = [Candidate(decimate=smallest)]
            found[length] = self.arena.halving(fits, length, survivors=3)
        return found

    def _decimation_grid(self, pivot: int) -> list[Candidate]:
        recipe, layers = self.recipe.decimate, self.arena.layers
        n_layer = len(layers)
        if isinstance(recipe.first_layer, (list, tuple)):
            first = [i for i in recipe.first_layer if i < n_layer]
        else:  # layers that look furthest, by Mamba Mean Distance
            reach = [sum(layer.mean_distance) / len(layer.mean_distance) for layer in layers]
            first = sorted(sorted(range(1, n_layer), key=lambda i: -reach[i])[:4]) or [0]
            say("mean distance by layer: " + " ".join(f"{d:.0f}" for d in reach))
        grid = []
        for i in first:
            for count in recipe.n_layers:
                chosen = tuple(range(i, min(i + count, n_layer)))
                bases = [recipe.base] if recipe.base else [round(f * self.L) for f in recipe.base_factors]
                for base in bases:
                    for beta in recipe.beta if len(chosen) > 1 else recipe.beta[:1]:
                        for score in recipe.weights:
                            pick = DecimatePick(chosen, base, beta, score)  # type: ignore[arg-type]
                            if max(pick.keep()) < pivot:
                                grid.append(Candidate(decimate=pick))
        return list(dict.fromkeys(grid))

    # -- both --------------------------------------------------------------------------------------------------

    def _both(self, filtered: Candidate, decimated: Sequence[Candidate], length: int) -> Candidate:
        assert filtered.filter is not None
        shares = [min(1.0, round(filtered.filter.share * step, 6)) for step in (0.71, 1.0, 1.41)]
        grid = [Candidate(replace(filtered.filter, share=s), d.decimate) for d in decimated for s in shares]
        return self.arena.halving(grid, length)[0]


def plain_scores(arena: Arena, lengths: Sequence[int]) -> None:
    """Score the plain model everywhere: what every method has to beat."""
    for length in progress(list(lengths), "plain model", unit="length"):
        arena.score(NONE, length)
