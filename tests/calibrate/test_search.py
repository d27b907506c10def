"""The search finds what is best where it is known: a made-up scoring whose score has one peak."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from longscan.calibrate.errors import UserError
from longscan.calibrate.measure.measuring import LayerMeasurement
from longscan.calibrate.measure.sketch import DeltaSketch
from longscan.calibrate.recipe.recipe import parse_recipe
from longscan.calibrate.search.candidates import Candidate, FilterPick, ScalePick
from longscan.calibrate.search.scoring import Score, Scoring
from longscan.calibrate.search.search import Search, theta_candidates
from longscan.calibrate.search.tables import Tables
from longscan.calibrate.work.journal import Journal

from ..kernels.cases import load_benchmark

L, N_LAYER, D = 64, 4, 10
LENGTHS = (128, 256, 512, 1024, 4096)


def layer(i: int) -> LayerMeasurement:
    g = torch.Generator().manual_seed(i)
    sketch = DeltaSketch.empty(D, 64)
    sketch.add(torch.rand(300, D, generator=g) ** 3 + 1e-3)
    decay = -torch.logspace(-1, 2, D, dtype=torch.float64).expand(3, D)
    return LayerMeasurement(sketch, decay, torch.arange(D).float().expand(3, D) + i / 10, torch.zeros(3, 0, D))


class Known(Scoring):
    """Scores by a function of the candidate, the same on every window."""

    def score(self, candidate, length, share=1.0, prefix=None):
        windows = self.count(length, share)
        self.asked.append((candidate, length, windows))
        losses = torch.full((windows,), self.loss(candidate, length), dtype=torch.float64)
        return Score(losses, torch.empty(0), torch.empty(0, dtype=torch.bool))


def search(loss, recipe: str) -> Search:
    layers = [layer(i) for i in range(N_LAYER)]
    lm = SimpleNamespace(weights=SimpleNamespace(layers=layers), hybrid=False)
    tables = Tables(layers, L, lambda *_: pytest.fail("no sweep was asked for"))
    windows = {n: torch.zeros(8, 1, dtype=torch.int64) for n in LENGTHS}
    scoring = Known(lm, tables, "perplexity", windows, {}, 8, 4096, Journal(None, "", False))
    scoring.loss, scoring.asked = loss, []
    return Search(scoring, parse_recipe(recipe, "known"), LENGTHS, 0)


@pytest.mark.parametrize(
    "law",
    [
        lambda n: 0.3 * n / L,
        lambda n: 0.5,
        lambda n: 0.12,
        lambda n: 0.04,
        lambda n: 0.8,
        lambda n: 0.6 * (n / L) ** 0.5,
    ],
)
def test_the_mass_factor_is_found_at_every_length(law):
    def loss(candidate: Candidate, length: int) -> float:
        pick = candidate.filter
        return 9.0 if pick is None else abs(math.log(pick.share * length / L / law(length)))

    found = search(loss, "filter: {g_fit: stretched, layers: all}").run({"filter"})
    for pick in found:
        assert pick.filter is not None and pick.filter.filter is not None
        wanted = min(law(pick.length), pick.length / L)
        assert pick.filter.filter.share * pick.length / L == pytest.approx(wanted, rel=0.15)


def test_a_layer_that_must_not_be_filtered_is_left_out():
    def loss(candidate: Candidate, length: int) -> float:
        pick = candidate.filter
        return 9.0 if pick is None else 2.0 * (0 in pick.layers) + (2 in pick.layers) - 0.1 * len(pick.layers)

    for pick in search(loss, "filter: {g_fit: stretched}").run({"filter"}):
        assert pick.filter is not None and pick.filter.filter is not None
        assert pick.filter.filter.layers == (1, 3)


def test_scales_are_found_by_channels_and_by_layer(monkeypatch):
    def by_channels(candidate: Candidate, length: int) -> float:
        pick = candidate.scale
        return 9.0 if pick is None else abs(pick.power - 0.75) + abs(pick.top - 0.2)

    for pick in search(by_channels, "").run({"scale"}):
        assert pick.scale == Candidate(scale=ScalePick(0.75, 0.2))
    wanted = (0.25, 0.5, 0.0, 0.25)

    def by_layer(candidate: Candidate, length: int) -> float:
        pick = candidate.scale
        return 9.0 if pick is None else sum(abs(a - b) for a, b in zip(pick.each, wanted))

    bench = load_benchmark("mambaextend")
    monkeypatch.setattr(Search, "_scale", bench.search_by_layer)
    assert search(by_layer, "").run({"scale"})[0].scale.scale.each == wanted


def test_scales_become_factors():
    tables = search(lambda *_: 0.0, "").scoring.tables
    upi = tables.band([128, 256], {}, None, ScalePick(1.0, 0.2), only=True)["scales"]  # (K, n_layer, D)
    assert upi.unique().tolist() == [0.25, 0.5, 1.0]
    assert int((upi[0] == 0.5).sum()) == int((upi[1] == 0.25).sum()) == N_LAYER * D // 5
    each = load_benchmark("mambaextend").by_layer(0.0, 0.5, 1.0, -0.5).scale
    powers = tables.band([256], {}, None, each, only=True)["scales"][0]
    assert powers[:, 0].tolist() == [1.0, 0.5, 0.25, 2.0] and bool((powers == powers[:, :1]).all())


def test_thetas_differ_in_the_channels_they_call_global():
    found = theta_candidates([layer(i) for i in range(N_LAYER)], parse_recipe("", "default"))
    counts = [int((layer(0).decay() > log_theta).sum()) for log_theta in found]
    assert counts == sorted(set(counts), reverse=True) and min(counts) > 0


def test_no_theta_that_calls_a_channel_global_is_an_error_before_anything_is_scored():
    searching = search(lambda *_: 0.0, "filter: {theta: [1.0], theta_quantiles: []}")
    with pytest.raises(UserError, match="give smaller ones"):
        searching.run({"filter"})
    assert searching.scoring.asked == []


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("{search: false}", [((2,), 64, "all")]),
        ("{search: false, weights: [global], base: 2000, scale_from: 1000}", [((2,), 128, "global")]),
        ("{search: false, published: {made-up: {layers: [1], base: 100}}}", [((1,), 100, "all")]),
        ("{first_layer: null, base: 2000, scale_from: 1000, weights: [all]}", [((2,), 128, "all")]),
        ("{first_layer: [1, 3], base_factors: [1], weights: [all]}", [((1,), 64, "all"), ((3,), 64, "all")]),
    ],
)
def test_the_decimations_that_are_compared(recipe, wanted):
    searching = search(lambda *_: 0.0, f"decimate: {recipe}")
    searching.scoring.lm.source = SimpleNamespace(name="made-up")
    picks = [candidate.decimate for candidate in searching._decimation_grid()]
    assert [(pick.layers, pick.base, pick.score) for pick in picks] == wanted


def test_stretched_tables_are_made_once():
    tables = search(lambda *_: 0.0, "").scoring.tables
    pick = FilterPick(-5.0, (1, 3), 0.4)
    first = tables.thresholds(pick, [0.4, 0.1])
    kept = tables.layers[3].sketch.threshold(0.4).float()
    local = tables.layers[3].decay() <= -5.0
    assert torch.equal(first[0, 3], kept.masked_fill(local, 0.0)) and bool((first[:, (0, 2)] == 0).all())
    tables.layers[1].sketch.mass.zero_()  # no longer looked at
    assert torch.equal(tables.thresholds(pick, [0.1, 0.4]), first.flip(0))


def test_no_recall_makes_up_for_reading_worse_than_the_plain_model():
    plain = torch.tensor([1.0, 1.2, 1.1, 1.3], dtype=torch.float64)
    noise = torch.tensor([0.01, -0.01, 0.01, -0.01], dtype=torch.float64)
    kinds = {1.0: (plain + 0.1 + noise, 0.9), 0.5: (plain + 0.001 + noise, 0.6), 0.1: (plain - 0.1, 0.2)}

    class Mixed(Known):
        def score(self, candidate, length, share=1.0, prefix=None):
            losses, answered = kinds[candidate.filter.share] if candidate.filter else (plain, 0.0)
            return Score(losses, torch.full((4,), answered, dtype=torch.float64), torch.ones(4, dtype=torch.bool))

    layers = tuple(range(N_LAYER))
    lm = SimpleNamespace(weights=SimpleNamespace(layers=layers), hybrid=False)
    scoring = Mixed(lm, None, "mixed", {512: torch.zeros(4, 8)}, {}, 8, 4096, Journal(None, "", False))
    found = scoring.halving([Candidate(FilterPick(-3.0, layers, share)) for share in kinds], 512)
    assert found[0].filter is not None and found[0].filter.share == 0.5


def test_a_mass_near_one_is_found_close_to_the_training_length_below_a_small_one():
    """With few lengths the neighbour is far: 0.1 times the mass there, and one here."""

    def loss(candidate: Candidate, length: int) -> float:
        pick = candidate.filter
        law = 0.1 if length > 2 * L else 1.0
        return 9.0 if pick is None else abs(math.log(pick.share * length / L / law))

    searching = search(loss, "filter: {g_fit: stretched, layers: all}")
    searching.lengths, searching.pivot = [2 * L, 64 * L], 64 * L
    first = searching.run({"filter"})[0].filter
    assert first is not None and first.filter is not None
    assert first.filter.share * 2 == pytest.approx(1.0, rel=0.15)


def octaves_from(wanted: float, seed: int, loss, length: int = 1024) -> float:
    """How far from m = wanted a search goes that starts there, where the value of every mass has its own luck."""

    class Lucky(Known):
        def score(self, candidate, length, share=1.0, prefix=None):
            mass = candidate.filter.share * length / L if candidate.filter else 1e4
            g = torch.Generator().manual_seed(round(mass * 1e4) + 100_003 * seed)
            luck = 0.05 * torch.randn(1, generator=g, dtype=torch.float64)
            none = torch.empty(0)
            return Score(loss(math.log2(mass / wanted)) + luck, none, none.bool())

    searching = search(lambda *_: 0.0, "")
    searching.scoring.__class__ = Lucky
    pick = searching._mass(FilterPick(-3.0, (0,), wanted * L / length), length)
    return math.log2(pick.share * length / L / wanted)


def test_the_luck_of_a_lengths_windows_moves_a_mass_little():
    """Two octaves away a mass is worse by as much as the values of single ones scatter, and the best one alone is 1.1
    octaves away (root of mean squares)."""
    away = torch.tensor([octaves_from(0.3, seed, lambda k: 0.0125 * k**2) for seed in range(200)])
    assert away.square().mean().sqrt() < 0.9 and abs(away.mean()) < 0.2


def test_a_filter_never_keeps_all_of_the_mass():
    found = search(lambda c, _: 1.0 - c.filter.share if c.filter else 9.0, "").run({"filter"})
    assert [pick.filter.filter.share for pick in found] == [0.75] * len(LENGTHS)


def test_a_mass_that_reads_worse_than_the_plain_model_is_left_however_much_it_recalls():
    class Mixed(Known):
        def score(self, candidate, length, share=1.0, prefix=None):
            large = candidate.filter is not None and candidate.filter.share * length / L > 0.4
            losses = torch.full((4,), 1.1 if large else 1.0, dtype=torch.float64)
            answered = torch.full((4,), 0.9 if large else 0.5, dtype=torch.float64)
            return Score(losses, answered, answered > 0.6)

    searching = search(lambda *_: 0.0, "")
    searching.scoring.__class__ = Mixed
    pick = searching._mass(FilterPick(-3.0, (0,), 0.5 * L / 1024), 1024)
    assert pick.share * 1024 / L <= 0.4


def test_what_both_keep_is_found_at_the_pivot_and_asked_once_elsewhere():
    def loss(candidate: Candidate, length: int) -> float:
        pick = candidate.filter
        kept = 0.0 if pick is None else abs(math.log(pick.share * length / L / (0.5 if candidate.decimate else 0.25)))
        return 5.0 + kept - (pick is not None) - (candidate.decimate is not None)

    searching = search(loss, "{filter: {g_fit: stretched, layers: all}, decimate: {n_layers: [1]}}")
    pivot = LENGTHS[2]
    for pick in searching.run({"filter", "decimate", "both"}):
        alone, both = pick.filter.filter.share, pick.both.filter.share
        assert both / alone == pytest.approx(1.41, rel=1e-2)
        asked = {c.filter.share for c, n, _ in searching.scoring.asked if c.method == "both" and n == pick.length}
        assert len(asked) == (3 if pick.length == pivot else 1)


@pytest.mark.parametrize(
    ("loss", "lost", "wanted"),
    [(0.004, 0, -4.0), (0.006, 0, -1.0), (0.004, 10, -1.0), (-0.1, 0, -4.0), (math.nan, 0, -1.0)],
)
def test_of_thetas_that_do_as_well_the_smallest_is_taken(loss, lost, wanted):
    """theta e^-4 reads worse by `loss`, a margin is 0.005, and answers `lost` fewer of 40."""

    class Mixed(Known):
        def score(self, candidate, length, share=1.0, prefix=None):
            n, small = self.count(length, share), candidate.filter is not None and candidate.filter.log_theta == -4.0
            answered = torch.ones(40, dtype=torch.float64)
            answered[: lost * small] = 0.0
            losses = torch.full((n,), 1.0 + loss * small, dtype=torch.float64)
            return Score(losses, answered[-n:], answered[-n:] > 0)

    layers = [layer(i) for i in range(N_LAYER)]
    lm = SimpleNamespace(weights=SimpleNamespace(layers=layers), hybrid=False)
    scoring = Mixed(
        lm, Tables(layers, L, None), "mixed", {LENGTHS[2]: torch.zeros(40, 8)}, {}, 8, 4096, Journal(None, "", False)
    )
    picks = [FilterPick(theta, tuple(range(N_LAYER)), 0.1) for theta in (-1.0, -4.0)]
    found = Search(scoring, parse_recipe("", "known"), LENGTHS, 0)._widest(picks, LENGTHS[2])
    assert found.log_theta == wanted
