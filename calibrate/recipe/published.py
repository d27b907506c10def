"""What the papers' settings come to for one model: its published row, or the fallback scaled to its training length."""

from __future__ import annotations

from dataclasses import dataclass

from .recipe import PublishedDecimation, PublishedFilter, Recipe, _plain


@dataclass(frozen=True)
class FilterSettings:
    """One candidate, nothing left to choose: the lengths at which g is stored, the length the filter is active from."""

    theta: float
    clamp: float | None
    table: tuple[int, ...]
    start: int


def published_filter(recipe: Recipe, model_id: str, train_length: int) -> FilterSettings:
    """The published filter for a model: its row and the table as they stand, else scaled by L / scale_from."""
    row, settings = filter_row(recipe, model_id), recipe.filter
    theta, clamp = (row.theta, row.clamp) if row else (settings.theta[0], settings.clamp)
    ratio = 1.0 if row or settings.scale_from is None else train_length / settings.scale_from
    start = train_length + 1 if settings.start is None else max(1, round(settings.start * ratio))
    table = tuple(sorted({max(1, round(length * ratio)) for length in settings.table or ()}))
    return FilterSettings(theta, clamp, table, start)


def published_decimation(recipe: Recipe, model_id: str, n_layer: int, train_length: int) -> PublishedDecimation:
    """A model's published decimation: its row, else layer floor(n_layer / 2), the base scaled by L / scale_from."""
    row, settings = decimation_row(recipe, model_id), recipe.decimate
    if row:
        return row
    layers = settings.first_layer[:1] if isinstance(settings.first_layer, tuple) else (n_layer // 2,)
    run = range(layers[0], min(layers[0] + settings.n_layers[0], n_layer))
    base = decimation_bases(recipe, train_length)[0]
    return PublishedDecimation.model_construct(layers=tuple(run), base=base, beta=settings.beta[0])


def decimation_bases(recipe: Recipe, train_length: int) -> list[int]:
    """Candidates for L_base in tokens: the recipe's base, scaled by L / scale_from, or else multiples of L."""
    settings = recipe.decimate
    if settings.base is None:
        return [max(1, round(factor * train_length)) for factor in settings.base_factors]
    return [max(1, round(settings.base * train_length / (settings.scale_from or train_length)))]


def filter_row(recipe: Recipe, model_id: str) -> PublishedFilter | None:
    return next((row for model, row in recipe.filter.published.items() if _plain(model) == _plain(model_id)), None)


def decimation_row(recipe: Recipe, model_id: str) -> PublishedDecimation | None:
    return next((row for model, row in recipe.decimate.published.items() if _plain(model) == _plain(model_id)), None)


def recipe_train_length(recipe: Recipe, model_id: str) -> int | None:
    """L as the recipe knows it: the recipe's own, else a published row's; None where the model itself must say."""
    rows = (filter_row(recipe, model_id), decimation_row(recipe, model_id))
    return recipe.train_length or next((row.train_length for row in rows if row and row.train_length), None)
