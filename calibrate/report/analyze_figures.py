"""The papers' own pictures, of this model: implicit attention, mean distance and sum of delta against length."""

from __future__ import annotations

import math
from typing import Any

import torch

from .analyze import FLOOR, Analysis, AttentionMap
from .eval_figures import prefill_times
from .plots import COLOURS, Picture, against_layer, against_length, axes, tokens


def pictures(analysis: Analysis, machine: str) -> list[Picture]:
    """All of them, in the report's order."""
    pairs: dict[tuple[int, int], list[AttentionMap]] = {}
    for found in analysis.maps:
        pairs.setdefault((found.layer, found.channel), []).append(found)
    drawn = [attention(rank, maps) for rank, maps in enumerate(pairs.values(), 1)]
    drawn += [distance(analysis, relative=False), distance(analysis, relative=True), passed(analysis)]
    if analysis.times:
        caption = f"The fastest of three readings of one prompt, {machine}."
        drawn.append(prefill_times(analysis.times, analysis.train_length, caption, "prefill-time"))
    return drawn


def attention(rank: int, maps: list[AttentionMap]) -> Picture:
    """One channel at L and at 8 L, one above the other."""
    first = maps[0]
    with axes(len(maps), height=3.1 * len(maps)) as (figure, panels):
        for panel, found in zip(panels, maps):
            S = found.length
            keys = torch.arange(found.strength.shape[1]) * S / found.strength.shape[1]
            shown = found.strength.clamp(min=1e-12).log10().masked_fill(keys > found.queries[:, None], math.nan).numpy()
            image = panel.imshow(
                shown, extent=(0, S, S, 0), vmin=-6, vmax=0, cmap="viridis", aspect="auto", interpolation="nearest"
            )
            edge = (found.queries - found.reach).tolist()
            panel.plot(edge, found.queries.tolist(), color="#ff5a36", lw=1.4, label=f"scores fall below {FLOOR:g}")
            panel.set_xlim(0, S)
            panel.set_ylim(S, 0)
            panel.set(xlabel="token looked at", ylabel="token looking")
            panel.set_title(f"{tokens(S)} tokens; the last one reaches back {int(found.reach[-1]):,}", loc="left")
            panel.legend(loc="upper right")
        figure.colorbar(image, ax=panels, label="log10 of the score over the row's largest", shrink=0.8)
    caption = (
        f"Layer {first.layer}, channel {first.channel}: log decay over the training length {first.log_decay:.3g} "
        f"(channel {rank} of those sampled, slowest forgetting first). Red: the receptive field's edge."
    )
    return Picture(
        f"attention-{rank}", f"Implicit attention, layer {first.layer} channel {first.channel}", caption, figure
    )


def distance(analysis: Analysis, relative: bool) -> Picture:
    """Every layer's Mamba Mean Distance against the tokens read."""
    lengths = sorted(analysis.distances)
    n_layer = len(analysis.distances[lengths[0]])
    with axes() as (figure, [panel]):
        for layer in range(n_layer):
            values = [analysis.distances[n][layer] / (n if relative else 1) for n in lengths]
            name = f"layer {layer}" if n_layer <= 8 else None
            panel.plot(lengths, values, "o-", ms=3, color=_shade(layer, n_layer), label=name)
        ylabel = "mean distance / tokens read" if relative else "mean distance, tokens"
        against_length(panel, lengths, analysis.train_length, ylabel)
        panel.set_ylim(bottom=0)
        if n_layer > 8:
            _layer_bar(figure, panel, n_layer)
    if relative:
        caption = "As a share of what was read: a layer that used its whole context would stay level."
        return Picture("mean-distance-relative", "Mean distance over length", caption, figure)
    caption = "A layer whose curve flattens looks no further back however much it reads."
    return Picture("mean-distance-length", "Mean distance against length", caption, figure)


def passed(analysis: Analysis) -> Picture:
    """Where each layer's running sum of delta leaves what training ever saw."""
    L, values = analysis.train_length, analysis.passed
    with axes() as (figure, [panel]):
        for layer, position in enumerate(values):
            if position is None:
                panel.plot(layer, analysis.read, marker="^", color=COLOURS["none"], ms=7)
            else:
                panel.bar(layer, position, color=COLOURS["both"])
        panel.axhline(L, color="0.1", lw=1, ls="--")
        against_layer(panel, len(values), "tokens read")
    never = "; triangles: never, over all of it" if None in values else ""
    caption = (
        f"The position, reading {tokens(analysis.read)} tokens, at which a layer's sum of delta over channels and "
        f"tokens first passes the largest sum any window of {tokens(L)} tokens reached{never}. "
        "Dashed: the training length."
    )
    return Picture("sum-of-delta", "Where the sum of delta leaves what training saw", caption, figure)


def _shade(layer: int, n_layer: int) -> tuple[float, float, float, float]:
    import matplotlib

    return matplotlib.colormaps["viridis"](0.9 * layer / max(1, n_layer - 1))


def _layer_bar(figure: Any, panel: Any, n_layer: int) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scale = ScalarMappable(Normalize(0, (n_layer - 1) / 0.9), "viridis")
    bar = figure.colorbar(scale, ax=panel, label="layer")
    bar.ax.set_ylim(0, n_layer - 1)
