"""How many windows each length is searched and decided on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from longscan.calibrate.recipe.recipe import parse_recipe
from longscan.calibrate.stages.job import Job
from longscan.calibrate.stages.texts import Tokens


@pytest.mark.parametrize(("samples", "beyond"), [(100, 50), (30, 15), (20, 15), (4, 4)])
def test_half_the_windows_are_searched_beyond_the_pivot_unless_they_are_few(samples, beyond):
    job = Job(None, None, SimpleNamespace(samples=samples), None, [2, 4, 8, 16, 32], [])
    assert [job.searching(n) for n in job.lengths] == [samples] * 3 + [beyond] * 2


@pytest.mark.parametrize(("texts", "count"), [(1, 15), (2, 16), (3, 15), (4, 16)])
def test_every_text_has_as_many_windows(texts, count):
    windows = torch.zeros(60, 8)
    tokens = Tokens([], [[]] * texts, windows, windows, windows, 4, {})
    assert len(tokens.first(tokens.searched, 15)) == count and len(tokens.first(tokens.judged, 99)) == 60


@pytest.mark.parametrize(
    ("recipe", "outright"),
    [
        ("", {"none"}),
        ("decimate: {search: false}", {"none", "decimate"}),
        ("filter: {fit: published}", {"none", "filter", "decimate", "both", "auto"}),
    ],
)
def test_only_what_the_recipe_says_outright_is_not_searched(recipe, outright):
    for method in ("none", "filter", "decimate", "both", "auto"):
        job = Job(None, parse_recipe(recipe, "mine"), SimpleNamespace(method=method), None, [512], [])
        assert job.searches == (method not in outright), method
