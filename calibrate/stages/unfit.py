"""What a recipe asks of a model that has no such thing, or at lengths too short for it: refused before any work."""

from __future__ import annotations

from collections.abc import Sequence

from ...runtime.model import LM
from ...runtime.sidecar.plan import MIN_KEEP
from ..errors import UserError
from ..recipe.published import decimation_bases, decimation_row
from ..recipe.recipe import Recipe
from ..search.candidates import published_pick
from ..search.search import pivot_of


def refuse_unfit(
    lm: LM, recipe: Recipe, train_length: int, lengths: Sequence[int], methods: Sequence[str], searches: bool
) -> None:
    """lengths ascending; methods: the candidates; searches: whether they are searched for. Raises UserError."""
    _refuse_layers(lm, recipe)
    if searches and lm.hybrid and "filter" in methods and recipe.filter.g_fit == "sequential":
        raise UserError(
            "filter.g_fit sequential runs the layers one by one, which a model with attention layers cannot; "
            "give g_fit: stretched or auto"
        )
    if {"decimate", "both"} & set(methods):
        _refuse_keep(lm, recipe, train_length, lengths, searches)


def _refuse_layers(lm: LM, recipe: Recipe) -> None:
    """A layer that the model has not got, anywhere in the recipe."""
    last, row = len(lm.weights.layers) - 1, decimation_row(recipe, lm.source.name)
    named = {
        "filter.layers": recipe.filter.layers,
        "decimate.first_layer": recipe.decimate.first_layer,
        "decimate.published": row.layers if row else (),
    }
    for key, layers in named.items():
        if isinstance(layers, tuple) and layers and layers[-1] > last:
            raise UserError(f"{key} names layer {layers[-1]} and the model has layers 0 to {last}; name some of these")


def _refuse_keep(lm: LM, recipe: Recipe, train_length: int, lengths: Sequence[int], searches: bool) -> None:
    """A decimation that keeps as many tokens as there are, at the length where candidates are ranked or, of one that
    the recipe says outright, at the shortest. A published row that is not searched beside stands as it is."""
    name, shortest = lm.source.name, lengths[0]
    if searches and recipe.decimate.search:
        keeps, at = max(MIN_KEEP, min(decimation_bases(recipe, train_length))), pivot_of(lengths)
    elif searches or not decimation_row(recipe, name):
        pick = published_pick(recipe, name, len(lm.weights.layers), train_length)
        keeps, at = max(pick.keep()), shortest
    else:
        return
    for kept, length in ((keeps, at), (MIN_KEEP, shortest)):
        if kept >= length:
            raise UserError(
                f"decimation keeps {kept} tokens at least, which are no fewer than {length}; "
                "give longer --lengths or a smaller decimate.base or base_factors"
            )
