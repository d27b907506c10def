"""The figures a sidecar can draw of itself: no model, no text, nothing measured anew."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...runtime.sidecar.sidecar import Sidecar
from ..summary import (
    calibrated_lengths,
    filtered_channels,
    haystacks,
    kept_mass,
    label,
    mean_distances,
    scores_of,
    taken,
    windows_judged,
)
from ..summary import perplexity as exp
from .plots import COLOURS, PALETTE, Picture, against_layer, against_length, axes, curves, heat, tokens

SCHEMATIC = 65536  # the papers draw the sequence's length by layer at 64k


def pictures(side: Sidecar, mean_distance: Sequence[float] | None = None) -> list[Picture]:
    """The figures, in the report's order, without those the sidecar has no data for.

    mean_distance: one value a layer in tokens, for sidecars that do not record it.
    """
    distance = mean_distances(side) or mean_distance
    found = [
        perplexity(side),
        passkeys(side),
        None if distance is None else distances(side, distance),
        global_channels(side),
        threshold_curves(side),
        mass(side),
        layer_tokens(side),
    ]
    return [picture for picture in found if picture is not None]


def perplexity(side: Sidecar) -> Picture | None:
    lengths, found = scores_of(side, "loss")
    if not lengths:
        return None
    with axes() as (figure, [panel]):
        curves(panel, [(n, method, exp(loss)) for method, by_length in found.items() for n, loss in by_length.items()])
        chosen = [(n, found[m][n]) for n in lengths if n in found.get(m := taken(side, n), {})]
        panel.plot(
            [n for n, _ in chosen], [exp(v) for _, v in chosen], "o", ms=10, mfc="none", mec=COLOURS["auto"],
            label="auto takes this",
        )  # fmt: skip
        against_length(panel, lengths, None, "perplexity per token", log=True)
    caption = f"Held-out text of the calibration, {windows_judged(side)}, the same for every method at a length."
    return Picture("perplexity", "Perplexity against length", caption, figure)


def passkeys(side: Sidecar) -> Picture | None:
    lengths, found = scores_of(side, "passkeys")
    if not lengths:
        return None
    with axes(height=0.9 + 0.42 * len(found)) as (figure, [panel]):
        grid = [[by_length.get(n) for n in lengths] for by_length in found.values()]
        heat(panel, grid, [label(m) for m in found], [tokens(n) for n in lengths])
        panel.set_xlabel("tokens read")
    caption = (
        f"Five digits hidden in held-out text{haystacks(side)}, asked for at the end; share answered exactly, over all "
        "depths."
    )
    return Picture("passkeys", "Passkeys answered", caption, figure)


def decimating(side: Sidecar) -> list[int]:
    """The layers that decimate at some calibrated length, if forced or chosen."""
    return sorted({layer for b in range(len(side.bands)) for layer in side.keep(b)})


def distances(side: Sidecar, values: Sequence[float]) -> Picture:
    marked = decimating(side)
    with axes() as (figure, [panel]):
        colours = [COLOURS["decimate"] if i in marked else "#b9c4cf" for i in range(len(values))]
        panel.bar(range(len(values)), values, color=colours)
        against_layer(panel, len(values), "mean distance, tokens")
    where = ", ".join(map(str, marked)) or "none"
    caption = (
        f"How far back a layer looks at the training length ({side.train_length:,} tokens): Mamba Mean Distance. "
        f"Dark: the layers chosen for decimation ({where})."
    )
    return Picture("mean-distance", "Mamba Mean Distance by layer", caption, figure)


def global_channels(side: Sidecar) -> Picture | None:
    longest = calibrated_lengths(side)[-1]
    counts, channels = filtered_channels(side, longest), int(side.metadata["channels"])
    if counts is None:
        return None
    with axes() as (figure, [panel]):
        panel.bar(range(len(counts)), [100 * n / channels for n in counts], color=COLOURS["filter"])
        against_layer(panel, len(counts), "global channels, %")
    caption = f"Share of the {channels:,} channels of each layer that the filter thins out at {tokens(longest)}."
    return Picture("global-channels", "Share of global channels by layer", caption, figure)


def sample_channels(side: Sidecar) -> list[tuple[int, int]]:
    """(layer, channel) of filtered channels: in up to three layers spread over the depth, the median and largest g."""
    longest = calibrated_lengths(side)[-1]
    counts = filtered_channels(side, longest) or []
    layers = [layer for layer, n in enumerate(counts) if n]
    picked = dict.fromkeys(layers[round(k * (len(layers) - 1) / 2)] for k in range(3)) if layers else {}
    found: list[tuple[int, int]] = []
    for layer in picked:
        order = side.thresholds(layer, longest).argsort(descending=True)[: counts[layer]]
        found += [(layer, int(channel)) for channel in dict.fromkeys([int(order[0]), int(order[len(order) // 2])])]
    return found


def threshold_curves(side: Sidecar) -> Picture | None:
    samples = sample_channels(side)
    if not samples:
        return None
    lengths, L = calibrated_lengths(side), side.train_length
    steps = torch.logspace(math.log2(L + 1), math.log2(lengths[-1] * 1.5), 160, base=2).tolist()
    with axes() as (figure, [panel]):
        for index, (layer, channel) in enumerate(samples):
            has = [side.table(side.band(s), "thresholds") is not None for s in steps]
            g = [float(side.thresholds(layer, s)[channel]) if there else 0.0 for s, there in zip(steps, has)]
            y = [v if v > 0 else math.nan for v in g]
            panel.plot(steps, y, color=PALETTE[index], label=f"layer {layer}, channel {channel}")
        panel.set_yscale("log")
        against_length(panel, [L, *lengths], L, "threshold g(S)")
    caption = (
        "A sample channel skips the tokens whose delta is at most g(S). Curves jump where one band of lengths ends and "
        "the next, with settings of its own, begins; there is no curve where a channel is not filtered."
    )
    return Picture("thresholds", "g(S) of sample channels", caption, figure)


def mass(side: Sidecar) -> Picture | None:
    points = [(n, m) for n in calibrated_lengths(side) if (m := kept_mass(side, n)) is not None]
    if not points:
        return None
    L = side.train_length
    with axes() as (figure, [panel]):
        x = [L, *(n for n, _ in points)]
        panel.plot(x, [n / L for n in x], color=COLOURS["none"], ls=":", label="plain: keeps all, S / L")
        panel.axhline(1, color="0.75", lw=1, ls="--", label="as much as at the training length")
        panel.plot([n for n, _ in points], [m for _, m in points], "o-", color=COLOURS["filter"], label="filter: m(S)")
        against_length(panel, x, L, "mass factor m", log=True)
    caption = (
        "The mass of delta a filtered channel keeps over a text of S tokens, as a multiple of what it takes in over "
        f"the training length of {tokens(L)}."
    )
    return Picture("mass", "Kept mass against length", caption, figure)


def layer_tokens(side: Sidecar, length: int = SCHEMATIC) -> Picture | None:
    if length <= side.train_length:
        return None
    n_layer = int(side.metadata["n_layer"])
    band = side.band(length)
    filters, decimates = side.table(band, "thresholds") is not None, bool(side.keep(band))
    possible = {"none": True, "filter": filters, "decimate": decimates, "both": filters and decimates}
    auto = side.plan(length).method
    drawn: dict[tuple[int, ...], list[str]] = {}
    for method in (m for m, there in possible.items() if there):
        curve = tuple(int(n) for n in side.plan(length, method).scan_lengths(n_layer, 1))
        drawn.setdefault(curve, []).append(label(method) + (" (auto)" if method == auto else ""))
    with axes() as (figure, [panel]):
        for (curve, names), shade in zip(drawn.items(), ("#6b6b6b", "#0072b2", "#8a5fb0", "#d98a00")):
            steps = [*curve, curve[-1]]
            panel.step(range(len(steps)), steps, where="post", color=shade, label=", ".join(names), lw=2)
        panel.set_yscale("log", base=2)
        values = sorted({n for curve in drawn for n in curve} | {side.train_length})
        apart = [n for i, n in enumerate(values) if i == 0 or n > 1.2 * values[i - 1]]
        panel.set_yticks(apart, [tokens(n) for n in apart])
        panel.minorticks_off()
        panel.axhline(side.train_length, color="0.75", lw=1, ls="--", zorder=0)
        against_layer(panel, n_layer, "tokens its scan reads")
        panel.legend()
    beyond = length > calibrated_lengths(side)[-1]
    caption = f"Sequence length by layer for a prompt of {tokens(length)}; dashed: the training length." + (
        f" The longest calibrated length is {tokens(calibrated_lengths(side)[-1])}: its settings are used."
        if beyond
        else ""
    )
    return Picture("tokens", f"Tokens each layer scans at {tokens(length)}", caption, figure)
