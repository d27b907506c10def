"""The filter of a sequence that grows: g(t) instead of g(S), stepping at fixed positions.

From the training length L on, positions are divided into cells whose edges lie at L 2^(k/8): the token at position t
is filtered with g at the length its cell ends at. The edges come from the sidecar alone, so the way a sequence is cut
into chunks and steps changes nothing, and g is looked up eight times an octave instead of once a token.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace
from functools import cached_property

from ..sidecar.plan import LayerPlan, Plan
from ..sidecar.sidecar import Sidecar
from .plans import Layered, layer_plans, plan_at, stacked
from .state import State

_AN_OCTAVE = 8  # cells
_OCTAVES = 40
_REMEMBERED = 64  # resolved plans


class Growth:
    """A sidecar read at growing lengths, for one model."""

    def __init__(self, sidecar: Sidecar, weights: Layered):
        self._sidecar, self._weights = sidecar, weights
        self._resolved: dict[tuple[Plan, int, str, int], list[LayerPlan]] = {}
        self._stacked: tuple[list[list[LayerPlan]], list[LayerPlan]] = [], []  # the last rows, and what came of them

    @cached_property
    def _edges(self) -> list[int]:
        L = self._sidecar.train_length
        return sorted({math.ceil(L * 2 ** (k / _AN_OCTAVE)) for k in range(_AN_OCTAVE * _OCTAVES)})

    def until(self, position: int) -> int:
        """The first position after `position` that another g may hold for: where its cell ends."""
        return self._edges[bisect_right(self._edges, position)]

    def layer_plans(self, state: State) -> list[LayerPlan]:
        """What each layer does with the next token of each row, whose position is the row's length; the same list
        until a row enters another cell."""
        positions = state.length.tolist()
        plans = state.plans if len(state.plans) > 1 else state.plans * len(positions)
        rows = [self._row(plan, self.until(at), state) for plan, at in zip(plans, positions)]
        before, found = self._stacked
        if len(before) != len(rows) or any(a is not b for a, b in zip(before, rows)):
            found = stacked(rows)
            self._stacked = rows, found
        return found

    def _row(self, plan: Plan, length: int, state: State) -> list[LayerPlan]:
        key = (plan, length, state.method, state.protected)
        found = self._resolved.get(key)
        if found is None:
            grown, protected = self._grown(plan, length, state)
            layers = layer_plans((grown,), self._sidecar, self._weights, protected)
            found = [replace(layer, keep=None, score_weight=None) for layer in layers]
            if len(self._resolved) >= _REMEMBERED:
                self._resolved.clear()  # other threads hold what they looked up
            self._resolved[key] = found
        return found

    def _grown(self, plan: Plan, length: int, state: State) -> tuple[Plan, int]:
        """The plan at `length` of a sequence begun with `plan`, and its r."""
        if length <= self._sidecar.train_length or plan.method == "decimate":
            return Plan("none", length), state.protected
        if plan.method == "both":  # what came after the prompt was never decimated: it counts like the last r
            return Plan("both", length, plan.decimate), state.protected + max(0, length - int(plan.length))
        return plan_at(self._sidecar, length, state.method, fresh=False), state.protected
