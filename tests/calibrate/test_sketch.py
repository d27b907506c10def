"""The sketch of delta: the same bits in any order, and thresholds as good as those of the values themselves."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from longscan.calibrate.measure.measuring import measure
from longscan.calibrate.measure.sketch import BINS, DeltaSketch, exact_values
from longscan.calibrate.texts.sources import read_texts
from longscan.runtime import load

SHARES = (0.01, 0.015, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def sketch_of(delta: torch.Tensor, values: int) -> DeltaSketch:
    sketch = DeltaSketch.empty(delta.shape[1], values)
    sketch.add(delta)
    return sketch


def exact_g(delta: torch.Tensor, share: float) -> torch.Tensor:
    """The published rule on the values themselves: k = (first index whose cumsum exceeds the target) + 1."""
    ordered = delta.double().sort(0, descending=True).values
    sums = ordered.cumsum(0)
    k = ((sums <= share * sums[-1]).sum(0) + 1).clamp(max=len(delta) - 1)
    return ordered.gather(0, k[None])[0]


def kept(delta: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return torch.where(delta > g, delta, 0.0).double().sum(0)


def misses(sketch: DeltaSketch, fitted: torch.Tensor, others: list[torch.Tensor]) -> int:
    """Channels and shares where the kept mass is off by more than 1% and more than one token's mass."""
    count = 0
    for share in SHARES:
        g, wanted = sketch.threshold(share), exact_g(fitted, share)
        for delta in others:
            found, right = kept(delta, g), kept(delta, wanted)
            one_token = torch.maximum(g, wanted) * (1 + 2**-5)
            count += int(((found - right).abs() > torch.maximum(0.01 * right, one_token)).sum())
    return count


def values_of(kind: str, tokens: int = 3000) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(tokens, 6, generator=g)
    return {
        "narrow": F.softplus(noise * torch.linspace(1e-4, 0.1, 6) - 3),
        "wide": F.softplus(noise * torch.linspace(1, 6, 6) - 3),
        "ties": F.softplus(noise.round(decimals=1) * 2 - 3),
        "zeros": F.relu(noise),
    }[kind]


@pytest.mark.parametrize("kind", ["narrow", "wide", "ties", "zeros"])
def test_any_order_of_adding_and_merging_gives_the_same_bits(kind):
    parts = values_of(kind).split(800)
    whole = sketch_of(torch.cat(parts), 64)
    for order in itertools.permutations(range(len(parts))):
        merged, grown = DeltaSketch.empty(6, 64), DeltaSketch.empty(6, 64)
        for k in order:
            merged.merge(sketch_of(parts[k], 64))
            grown.add(parts[k])
        for other in (merged, grown):
            assert all(torch.equal(a, b) for a, b in zip(whole.tensors(), other.tensors())) and other.seen == whole.seen


def test_an_empty_sketch_changes_nothing():
    delta = values_of("wide")
    one, other = sketch_of(delta, 16), DeltaSketch.empty(6, 16)
    other.merge(one)
    one.merge(DeltaSketch.empty(6, 16))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors()))
    assert int(one.counts.sum()) + one.largest.numel() == delta.numel()


@pytest.mark.parametrize("kind", ["narrow", "wide"])
def test_thresholds_keep_the_mass_that_the_values_themselves_would(kind):
    """At the size a 1.4B model's calibration uses: 1220 of 131072 values are kept, the rest is in bins."""
    delta = values_of(kind, 131072)
    assert misses(sketch_of(delta, exact_values(48 * 4096, 131072)), delta, [delta]) == 0


def test_a_value_that_many_tokens_have_is_kept_or_dropped_as_the_exact_rule_does():
    delta = values_of("wide", 40000)[:, :3]
    for quantile in (0.3, 0.6, 0.9):
        tied = delta.clone()
        tied[::25] = delta.quantile(quantile, 0)  # 4% of the tokens
        sketch = sketch_of(tied, 1220)
        for share in torch.linspace(0.01, 0.99, 99).tolist():
            g, wanted = sketch.threshold(share), exact_g(tied, share)
            off = (kept(tied, g) - kept(tied, wanted)).abs()
            assert (off <= 0.01 * kept(tied, wanted)).all()


def test_with_all_values_kept_thresholds_are_the_exact_ones():
    delta = values_of("ties")
    for share in SHARES:
        assert torch.equal(sketch_of(delta, 4000).threshold(share), exact_g(delta, share))


def test_kept_share_is_the_inverse_of_the_threshold():
    delta = values_of("wide")
    for values, tolerance in ((3000, 1e-6), (32, 0.02)):
        sketch = sketch_of(delta, values)
        for share in (0.05, 0.4, 0.9):
            g = sketch.threshold(share)
            exact = kept(delta, g) / delta.double().sum(0)
            torch.testing.assert_close(sketch.kept_share(g), exact, rtol=tolerance, atol=1e-6)


def test_rows_of_shares_are_the_single_ones():
    sketch = sketch_of(values_of("wide"), 100)
    rows = torch.tensor([[0.1], [0.7]], dtype=torch.float64).expand(-1, 6)
    both = sketch.threshold(rows)
    assert torch.equal(both[0], sketch.threshold(0.1)) and torch.equal(both[1], sketch.threshold(0.7))
    assert torch.equal(sketch.threshold(rows[1]), both[1])


def test_share_one_keeps_everything():
    sketch = sketch_of(torch.rand(30, 2) + 0.1, 8)
    assert sketch.threshold(1.0).tolist() == [0.0, 0.0] and sketch.kept_share(torch.zeros(2)).tolist() == [1.0, 1.0]
    torch.testing.assert_close(sketch.mean(), sketch.total() / 30)


def test_the_demo_within_one_percent_on_its_own_windows_and_on_others():
    """Every channel of the demo at the size its calibration uses, where all values fit."""
    lm = load("demo")
    text = read_texts("demo", role="run").documents[0].encode()
    windows = torch.tensor(list(text[: 256 * 48])).view(48, 256)

    class Keep:
        def __init__(self):
            self.layers: dict[int, list[torch.Tensor]] = {}

        def observe(self, layer, inputs):
            delta = F.softplus(inputs.delta + inputs.weights.dt_bias).flatten(0, 1)
            self.layers.setdefault(layer, []).append(delta)

    fit, others = Keep(), Keep()
    lm.prefill(windows[:24], method="none", observer=fit)
    lm.prefill(windows[24:], method="none", observer=others)
    measured = measure(lm, windows[:24], 4096)
    for i, layer in enumerate(measured):
        mine, other = torch.cat(fit.layers[i]), torch.cat(others.layers[i])
        assert misses(layer.sketch, mine, [mine, other]) == 0


def test_memory_for_the_largest_shape_stays_under_its_bound():
    channels, windows = 48 * 4096, 64  # mamba-1.4b: layers x d_inner
    values = exact_values(channels, windows * 2048)
    one = DeltaSketch.empty(4096, values)
    sketches = 48 * sum(t.nbytes for t in one.tensors())
    per_window = windows * channels * (8 + 4)  # log decays in float64, mean distances in float32
    assert one.counts.shape == (4096, BINS) and sketches + per_window < 1.5e9
