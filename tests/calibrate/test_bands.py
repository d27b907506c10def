"""What a sidecar says between the calibrated lengths and beyond them: m(S) without seams, g from the channels."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from longscan.calibrate.measure.measuring import LayerMeasurement
from longscan.calibrate.measure.sketch import DeltaSketch
from longscan.calibrate.search.candidates import Candidate, DecimatePick, FilterPick, share_at
from longscan.calibrate.search.choice import bands
from longscan.calibrate.search.scoring import Scoring
from longscan.calibrate.search.search import LengthPicks
from longscan.calibrate.search.tables import Tables
from longscan.calibrate.sidecars import sidecar_from_bands
from longscan.runtime import Sidecar

L, N_LAYER, D, TOKENS = 64, 3, 8, 40_000
MASS = {128: 0.9, 256: 0.7, 512: 0.7, 1024: 0.4}
WORKING = FilterPick(-30.0, (0, 1, 2), 1.0)


@pytest.fixture(scope="module")
def layers() -> list[LayerMeasurement]:
    made = []
    for i in range(N_LAYER):
        sketch = DeltaSketch.empty(D, 4096)
        sketch.add(torch.rand(TOKENS, D, generator=torch.Generator().manual_seed(i)) ** 4 + 1e-4)
        decay = torch.full((1, D), -1.0, dtype=torch.float64)
        made.append(LayerMeasurement(sketch, decay, torch.ones(1, D), torch.zeros(1, 0, D)))
    return made


def sidecar(layers, decimations, methods, theta=None) -> Sidecar:
    """Of a policy that filters everywhere with MASS, beside decimations (and thetas) that differ by length."""
    picks, chosen = [], []
    for length, decimation, method in zip(MASS, decimations, methods):
        pick = replace(WORKING, share=MASS[length] * L / length)
        if theta is not None:
            pick = replace(pick, log_theta=theta[length])
        both = Candidate(pick, decimation)
        picks.append(LengthPicks(length, Candidate(pick), Candidate(decimate=decimation), both, None))
        chosen.append({"filter": Candidate(pick), "both": both}[method])
    lm = SimpleNamespace(
        source=SimpleNamespace(name="made-up", revision=""),
        fingerprint="0" * 64,
        weights=SimpleNamespace(layers=layers, channels=D),
    )
    tables = Tables(layers, L, lambda *_: pytest.fail("no sweep was asked for"))
    return sidecar_from_bands(lm, L, bands(tables, picks, chosen))


def mass(side: Sidecar, layers, length: int) -> float:
    """m(S): mass of delta kept at S over that at L, mean over channels."""
    kept = [layer.sketch.kept_share(side.thresholds(i, length)).mean() for i, layer in enumerate(layers)]
    return float(torch.stack(kept).mean()) * length / L


def wanted(length: float) -> float:
    return share_at(length, {n: m * L / n for n, m in MASS.items()}, L) * length / L


def decimations(*bases: int) -> list[DecimatePick]:
    return [DecimatePick((1,), base, 1.0, "all") for base in bases]


def test_the_law_of_m():
    for length, m in MASS.items():
        assert wanted(length) == pytest.approx(m)
    assert wanted(math.sqrt(128 * 256)) == pytest.approx(math.sqrt(0.9 * 0.7))  # log m is linear in log S
    assert wanted(math.sqrt(64 * 128)) == pytest.approx(math.sqrt(0.9))  # from m = 1 at L
    assert wanted(64 * 1024) == pytest.approx(0.4)  # held beyond the last


def test_a_decimation_that_auto_does_not_use_opens_no_band(layers):
    side = sidecar(layers, decimations(48, 96, 48, 200), ["filter"] * 4)
    assert len(side.bands) == 1
    for length in MASS:  # and every prompt of the band can still be decimated by force
        assert all(keep < length for keep in side.plan(length, "decimate").decimate.values())


@pytest.mark.parametrize("cut", ["method", "theta"])
def test_the_mass_kept_has_no_seam_at_a_cut_between_bands(layers, cut):
    methods = ["filter", "filter", "both", "both"] if cut == "method" else ["filter"] * 4
    theta = None if cut == "method" else {128: -30.0, 256: -30.0, 512: -20.0, 1024: -20.0}
    side = sidecar(layers, decimations(48, 48, 48, 48), methods, theta)
    assert len(side.bands) == 2
    lengths = [round(L * 2 ** (k / 16)) for k in range(1, 16 * 5)]
    found = [mass(side, layers, n) for n in lengths]
    for n, m in zip(lengths, found):
        assert m == pytest.approx(wanted(n), rel=0.03 if n <= 1024 else 0.05)
    for one, other in pairwise(found):
        assert abs(math.log(other / one)) < 0.05


def test_no_sweep_is_longer_than_the_measured_text(layers):
    """Rows beyond it follow the stretched fit from the last one that was swept."""
    asked, pick = [], replace(WORKING, share=0.4, fit="sequential")

    def sweep(pick, decimate, share, length):
        asked.append(length)
        return 2 * tables.thresholds(pick, [share])[0]

    tables = Tables(layers, L, sweep, swept_to=300)
    found = tables.band([128], {128: pick}, None, None, shares={128: 0.4, 1024: 0.1}, top=1024)
    assert 128 in asked and max(asked) <= 300 < found["lengths"].max() == 1024
    stretched = Tables(layers, L, sweep).band([128], {128: WORKING}, None, None, shares={128: 0.4, 1024: 0.1}, top=1024)
    last = dict(zip(stretched["lengths"].tolist(), stretched["thresholds"]))[1024]
    torch.testing.assert_close(found["thresholds"][-1], 2 * last)


def test_beyond_the_last_length_m_holds_and_the_plan_says_so(layers):
    side = sidecar(layers, decimations(48, 48, 48, 48), ["filter"] * 4)
    assert not side.plan(1024).extrapolated
    for factor in (2, 4, 16):
        assert side.plan(1024 * factor).extrapolated
        assert mass(side, layers, 1024 * factor) == pytest.approx(0.4, rel=0.1)
        assert (side.thresholds(0, 1024 * factor) > side.thresholds(0, 1024)).all()  # g goes on; only m holds


@pytest.mark.parametrize("methods", [["filter", "filter", "both", "both"], ["filter", "both", "both", "both"]])
def test_both_is_judged_by_the_thresholds_that_are_written(layers, methods):
    """A scan that decimation has shortened looks g up between the lengths of other picks."""
    decimation = decimations(100)[0]
    side = sidecar(layers, [decimation] * 4, methods)
    lm = SimpleNamespace(
        source=SimpleNamespace(name="made-up", revision=""), fingerprint="0" * 64,
        weights=SimpleNamespace(layers=layers, channels=D), with_sidecar=lambda made: made,
    )  # fmt: skip
    tables = Tables(layers, L, lambda *_: pytest.fail("no sweep was asked for"))
    shares = {n: m * L / n for n, m in MASS.items()}
    for length, method in zip(MASS, methods):
        if method != "both":
            continue
        before = {n: share for n, share in shares.items() if n < length}
        scoring = Scoring(lm, tables, "perplexity", {}, {}, 8, 4096, None, shares=before)
        judged = scoring._model(Candidate(replace(WORKING, share=shares[length]), decimation), length)
        seen = side.plan(length).scan_lengths(N_LAYER, 9)
        assert L < seen[-1] < length and judged.plan(length).scan_lengths(N_LAYER, 9) == seen
        for i, n in enumerate(seen):
            g = side.thresholds_in(side.band(length), i, n, "both")
            torch.testing.assert_close(judged.thresholds_in(0, i, n, "both"), g, rtol=1e-5, atol=0)
