"""Which filter, which decimation: found at a pivot length first, then at every other from its neighbour's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..console import progress, say
from ..errors import UserError
from ..measure.measuring import LayerMeasurement
from ..recipe.published import decimation_bases
from ..recipe.recipe import Recipe
from .candidates import NONE, Candidate, DecimatePick, FilterPick, Fit, ScalePick, published_pick
from .channels import global_channels
from .intervals import clearly_better, within
from .scoring import Scoring

_OCTAVES = 2  # of a mass are looked at either way
_MOST = 0.75  # of the mass is kept by what is called a filter: with all of it nothing is filtered
_BLOCKS = 8  # layers are taken together in at most this many blocks


@dataclass(frozen=True)
class LengthPicks:
    """What the search found at one length; None where the recipe's method excludes it."""

    length: int
    filter: Candidate | None
    decimate: Candidate | None
    both: Candidate | None
    scale: Candidate | None


def theta_candidates(layers: Sequence[LayerMeasurement], recipe: Recipe) -> list[float]:
    """log thetas that differ in the channels they call global, from the recipe's list and quantiles of the decays.

    Raises UserError where none calls any channel global.
    """
    decays = torch.cat([layer.decay() for layer in layers])
    found = [float(torch.tensor(theta, dtype=torch.float64).log()) for theta in recipe.filter.theta]
    found += [float(decays.quantile(q)) for q in recipe.filter.theta_quantiles]
    distinct: dict[int, float] = {}
    for log_theta in sorted(found):
        channels = sum(int(global_channels(layer, log_theta).sum()) for layer in layers)
        if channels:  # a filter without a global channel is no filter
            distinct.setdefault(channels, log_theta)
    if not distinct:
        raise UserError("no channel's decay is above any filter.theta; give smaller ones or filter.theta_quantiles")
    return list(distinct.values())


def layer_sets(n_layer: int, recipe: Recipe) -> list[tuple[int, ...]]:
    """Sets of filtered layers to start from: all, or all but the first block."""
    wanted = recipe.filter.layers
    if isinstance(wanted, (list, tuple)):
        return [tuple(wanted)]
    everything = tuple(range(n_layer))
    if wanted == "all":
        return [everything]
    return [everything, everything[max(1, n_layer // _BLOCKS) :]]


def pivot_of(lengths: Sequence[int]) -> int:
    """The length, of ascending ones, at which the search begins."""
    return lengths[len(lengths) // 2]


class Search:
    """Drives a Scoring. The order of the search is fixed, so equal inputs give equal picks."""

    def __init__(self, scoring: Scoring, recipe: Recipe, lengths: Sequence[int], seed: int) -> None:
        self.scoring, self.recipe, self.lengths, self.seed = scoring, recipe, sorted(lengths), seed
        self.layers, self.L = scoring.tables.layers, scoring.tables.train_length
        self.pivot = pivot_of(self.lengths)
        self.fits: list[dict[str, Any]] = []  # the two fits of g compared, an entry a length

    def run(self, methods: set[str]) -> list[LengthPicks]:
        """Picks for every length. methods: those of filter, decimate, both, scale that may be used."""
        self.thetas = theta_candidates(self.layers, self.recipe) if methods & {"filter", "both"} else []
        plain_scores(self.scoring, self.lengths)
        filters = self._filters() if methods & {"filter", "both"} else {}
        decimations = self._decimations() if methods & {"decimate", "both"} else {}
        both = self._both(filters, decimations) if "both" in methods else {}
        found = []
        for length in self.lengths:
            decimated = decimations[length][0] if decimations else None
            scale = self._scale(length) if "scale" in methods else None
            found.append(LengthPicks(length, filters.get(length), decimated, both.get(length), scale))
        return found

    def _best(self, picks: Sequence[FilterPick], length: int) -> FilterPick:
        best = self.scoring.halving([Candidate(pick) for pick in picks], length)[0].filter
        assert best is not None
        return best

    def _widest(self, picks: Sequence[FilterPick], length: int) -> FilterPick:
        """Of the best picks that do as well, the one with the smallest theta, which filters the most channels.

        What the windows of one text do not tell apart beyond a margin, other kinds of text do (docs/calibration.md).
        """
        ranked = self.scoring.halving([Candidate(pick) for pick in picks], length, survivors=3)
        best, margin = self.scoring.score(ranked[0], length), self.recipe.policy.loss_margin
        good = [each for each in ranked[1:] if within(self.scoring.score(each, length), best, margin)]
        filters = [each.filter for each in (ranked[0], *good) if each.filter]  # the first even if it is no number
        return min(filters, key=lambda pick: pick.log_theta)

    # -- filter ------------------------------------------------------------------------------------------------

    def _filters(self) -> dict[int, Candidate]:
        stretched = {self.pivot: self._pivot_filter()}
        order = [n for n in self.lengths if n > self.pivot] + [n for n in reversed(self.lengths) if n < self.pivot]
        for length in progress(order, "filter by length", unit="length"):
            near = min(stretched, key=lambda n: abs(n - length))
            held = self._around(stretched[near], length, near / length)  # the same mass: m(S) = m(near)
            stretched[length] = self._theta(self._mass(held, length), length)
        return {n: Candidate(self._fitted(pick, n)) for n, pick in stretched.items()}

    def _pivot_filter(self) -> FilterPick:
        """Coordinate search: share and layers, then theta, then blocks of layers, then the share finely."""
        recipe, pivot = self.recipe, self.pivot
        start = self.thetas[len(self.thetas) // 2]
        mass = recipe.filter.mass
        shares = sorted({min(1.0, c) for c in (*mass.law, *(m * self.L / pivot for m in mass.factors or ()))})
        grid = [FilterPick(start, s, c) for s in layer_sets(len(self.layers), recipe) for c in shares]
        pick = self._best(grid, pivot)
        pick = self._widest([pick, *(replace(pick, log_theta=theta) for theta in self.thetas)], pivot)
        if recipe.filter.layers == "search":
            pick = self._drop_blocks(pick)
        return self._mass(pick, pivot)

    def _blocks(self) -> list[range]:
        n_layer = len(self.layers)
        size = max(1, n_layer // _BLOCKS)
        return [range(start, min(start + size, n_layer)) for start in range(0, n_layer, size)]

    def _drop_blocks(self, pick: FilterPick) -> FilterPick:
        """Greedy: leave a block of layers unfiltered while that helps."""
        while True:
            less = [replace(pick, layers=tuple(i for i in pick.layers if i not in block)) for block in self._blocks()]
            best = self._best([pick, *(one for one in less if one.layers)], self.pivot)
            if best == pick:
                return pick
            pick = best

    def _mass(self, start: FilterPick, length: int) -> FilterPick:
        """The share at the top of a curve through octaves of it around `start`.

        Trials tell few masses apart, so that the best of them is their luck: each octave counts with its neighbours, by
        1/4, 1/2, 1/4, and the top is that of a parabola through three such values. Where it is at an end, the search
        goes on beyond. What reads worse than the plain model is left for the best one that does not.
        """
        picks = {k: self._around(start, length, 2.0**k) for k in range(-_OCTAVES, _OCTAVES + 1)}
        while True:
            value = {k: self.scoring.score(Candidate(pick), length).value for k, pick in picks.items()}
            smooth = {k: (value.get(k - 1, v) + 2 * v + value.get(k + 1, v)) / 4 for k, v in value.items()}
            best = max(sorted(picks, key=abs), key=smooth.__getitem__)  # of equals the nearest
            further = best + (1 if best > 0 else -1)
            pick = self._around(start, length, 2.0**further)
            if further in picks or pick == picks[best]:
                break
            picks[further] = pick
        pick = picks[best]
        if best - 1 in picks and best + 1 in picks:
            below, above = (smooth[best] - smooth[best + k] for k in (-1, 1))
            if math.isfinite(below + above) and below + above > 0:
                pick = self._around(pick, length, 2.0 ** ((below - above) / (below + above) / 2))
        pick = replace(pick, share=min(pick.share, _MOST))
        if not self.scoring.reads_worse(Candidate(pick), length):
            return pick
        return self._best([pick, *(each for each in picks.values() if each.share <= _MOST)], length)

    def _around(self, pick: FilterPick, length: int, step: float) -> FilterPick:
        """The share times a step, of at least a 64th of the training length's mass."""
        return replace(pick, share=round(min(1.0, max(self.L / length / 64, pick.share * step)), 6))

    def _theta(self, pick: FilterPick, length: int) -> FilterPick:
        """Another theta at this length, if it is better beyond doubt: a new theta starts a new band."""
        others = [replace(pick, log_theta=theta) for theta in self.thetas]
        best = self._best([pick, *others], length)
        return best if self._clearly(Candidate(best), Candidate(pick), length, len(others)) else pick

    def _fitted(self, pick: FilterPick, length: int) -> FilterPick:
        """The same pick under the fits of g that the recipe allows; the stretched one unless another is better."""
        if self.recipe.filter.g_fit == "stretched" or self.scoring.lm.hybrid:
            return pick
        if length > self.scoring.tables.swept_to:  # told when the texts were read
            return pick
        fit: Fit = "sequential"
        shares = sorted({min(_MOST, round(pick.share * step, 6)) for step in (0.71, 1.0, 1.41)})
        best = self._best([replace(pick, share=share, fit=fit) for share in shares], length)
        self.fits.append({"length": length} | {each.fit: self._summary(each, length) for each in (pick, best)})
        always = self.recipe.filter.g_fit == "sequential"
        return best if always or self._clearly(Candidate(best), Candidate(pick), length, len(shares)) else pick

    def _summary(self, pick: FilterPick, length: int) -> dict[str, float]:
        """m(S), the value, and what it is made of."""
        score = self.scoring.score(Candidate(pick), length)
        found = {"mass": pick.share * length / self.L, "value": score.value}
        if len(score.losses):
            found["loss"] = float(score.losses.mean())
        if len(score.exact):
            found["passkeys"] = float(score.exact.double().mean())
        return {key: round(value, 6) for key, value in found.items()}

    def _clearly(self, one: Candidate, other: Candidate, length: int, tried: int) -> bool:
        """Better beyond an interval corrected for the candidates tried at each length, of which `one` is the best."""
        policy = self.recipe.policy
        if one == other:
            return False
        scores = self.scoring.score(one, length), self.scoring.score(other, length)
        return clearly_better(*scores, policy.corrected(tried * len(self.lengths)), policy.bootstrap, self.seed)

    # -- decimation --------------------------------------------------------------------------------------------

    def _decimations(self) -> dict[int, list[Candidate]]:
        """Best first: at every length the few best of the pivot's ranking, ranked again."""
        ranked = self.scoring.halving(self._decimation_grid(), self.pivot, survivors=6)
        found = {}
        for length in progress(self.lengths, "decimation by length", unit="length"):
            fits = [c for c in ranked if c.decimate and max(c.decimate.keep()) < length]
            best = ranked[0].decimate
            if not fits and best:  # always carry a usable one, so that it can be forced
                smallest = replace(best, base=self.L // 2)
                fits = [Candidate(decimate=smallest)]
            found[length] = self.scoring.halving(fits, length, survivors=3)
        return found

    def _decimation_grid(self) -> list[Candidate]:
        recipe, n_layer = self.recipe.decimate, len(self.layers)
        if not recipe.search:
            return [Candidate(decimate=published_pick(self.recipe, self.scoring.lm.source.name, n_layer, self.L))]
        if recipe.first_layer is None:
            first: Sequence[int] = [n_layer // 2]
        elif recipe.first_layer != "auto":
            first = recipe.first_layer
        else:  # layers that look furthest, by Mamba Mean Distance
            reach = [float(layer.reach().mean()) for layer in self.layers]
            first = sorted(sorted(range(1, n_layer), key=lambda i: -reach[i])[:4]) or [0]
            say("mean distance by layer: " + " ".join(f"{d:.0f}" for d in reach))
        grid = []
        for i in first:
            for count in recipe.n_layers:
                chosen = tuple(range(i, min(i + count, n_layer)))
                for base in decimation_bases(self.recipe, self.L):
                    for beta in recipe.beta if len(chosen) > 1 else recipe.beta[:1]:
                        for score in recipe.weights:
                            pick = DecimatePick(chosen, base, beta, score)
                            if max(pick.keep()) < self.pivot:
                                grid.append(Candidate(decimate=pick))
        return list(dict.fromkeys(grid))

    # -- both, scale -------------------------------------------------------------------------------------------

    def _both(
        self, filters: Mapping[int, Candidate], decimations: Mapping[int, Sequence[Candidate]]
    ) -> dict[int, Candidate]:
        """The filter and one of the few best decimations, by length; whether beside them it keeps more or less is found
        at the pivot."""
        found, steps = {}, [0.71, 1.0, 1.41]
        self.scoring.shares = {n: each.filter.share for n, each in filters.items() if each.filter}
        for length in progress(sorted(self.lengths, key=lambda n: n != self.pivot), "combining", unit="length"):
            pick = filters[length].filter
            assert pick is not None
            beside = [replace(pick, share=min(_MOST, round(pick.share * step, 6))) for step in steps]
            grid = [Candidate(each, d.decimate) for d in decimations[length] for each in beside]
            best = found[length] = self.scoring.halving(grid, length)[0]
            if length == self.pivot and best.filter:
                steps = [best.filter.share / pick.share]
        return found

    def _scale(self, length: int) -> Candidate:
        recipe = self.recipe.scale
        grid = [Candidate(scale=ScalePick(power, top)) for power in recipe.powers for top in recipe.top]
        return self.scoring.halving(grid, length)[0]


def plain_scores(scoring: Scoring, lengths: Sequence[int]) -> None:
    """Score the plain model everywhere: what every method has to beat."""
    for length in progress(list(lengths), "plain model", unit="length"):
        scoring.score(NONE, length)
