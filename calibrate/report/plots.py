"""How every figure looks, and how it becomes bytes. Figures are small so that a phone shows their text at full size."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from ..errors import UserError
from ..summary import label, ordered

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["svg", "png"]
WIDTH, HEIGHT = 4.2, 3.1  # inches; shown at 360 CSS pixels, 8 point text is still 9.5 pixels high
COLOURS = {
    "none": "#6b6b6b",
    "scale": "#009e73",
    "filter": "#d98a00",
    "decimate": "#8a5fb0",
    "both": "#0072b2",
    "auto": "#c1440e",
}
PALETTE = (*COLOURS.values(), "#56b4e9", "#b0447f", "#5a7d2a", "#333333")  # for what is no method
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "longscan",  # the same figure is the same bytes
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Picture:
    """A figure with what is written beside it. `name` is its file's stem."""

    name: str
    title: str
    caption: str
    figure: Figure

    @cached_property
    def svg(self) -> bytes:
        """For the page and for a file, which are to be alike: what is drawn twice may differ in its last digits."""
        return self.render("svg")

    def render(self, kind: Kind) -> bytes:
        """SVG or PNG, the same bytes for the same figure."""
        import matplotlib

        out = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        with matplotlib.rc_context(_STYLE):
            self.figure.savefig(out, format=kind, dpi=160, metadata=metadata)
        return out.getvalue()


@contextmanager
def axes(rows: int = 1, height: float = HEIGHT) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `rows` stacked panels in the project's style. Raises UserError without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('figures need matplotlib; run: pip install "longscan[calibrate]"') from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        panels = figure.subplots(rows, 1, squeeze=False)
        yield figure, list(panels[:, 0])


def colour(method: str, index: int = 0) -> str:
    return COLOURS.get(method, PALETTE[6 + index % 4])


def tokens(n: float) -> str:
    """A length for people: 4k is 4096."""
    n = round(n)
    for unit, name in ((1 << 20, "M"), (1 << 10, "k")):
        if n >= unit and n % (unit // 8) == 0:
            return f"{n / unit:g}{name}"
    return str(n)


def curves(panel: Axes, rows: Sequence[tuple[Any, ...]]) -> None:
    """A curve a method, in their order. rows: (length, method, value), or with the value's error behind it."""
    for index, method in enumerate(ordered([method for _, method, *_ in rows])):
        mine = sorted((row for row in rows if row[1] == method), key=lambda row: row[0])
        x, _, y, *errors = zip(*mine)
        looks: dict[str, Any] = {"ms": 4, "color": colour(method, index), "label": label(method)}
        line = "o--" if method == "auto" else "o-"
        if errors:
            panel.errorbar(x, y, errors[0], fmt=line, capsize=2, **looks)
        else:
            panel.plot(x, y, line, **looks)


def against_length(
    panel: Axes, lengths: Sequence[int], train_length: int | None, ylabel: str, *, log: bool = False
) -> None:
    """What a panel of curves shows against a logarithmic length, drawn already: a tick at each length (at most eight),
    the training length marked, a legend of what has labels. log: plain numbers on a logarithmic y axis."""
    if log:
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
    panel.set_xscale("log", base=2)
    every = -(-len(lengths) // 8)
    shown = sorted(set(lengths))[:: max(1, every)]
    panel.set_xticks(shown, [tokens(n) for n in shown])
    panel.minorticks_off()
    panel.set(xlabel="tokens read", ylabel=ylabel)
    if train_length is not None:
        panel.axvline(train_length, color="0.75", lw=1, ls="--", zorder=0)
    if panel.get_legend_handles_labels()[0]:
        panel.legend()


def against_layer(panel: Axes, count: int, ylabel: str) -> None:
    """What a panel shows against the layers: a tick at each, at most twelve."""
    panel.set(xlabel="layer", ylabel=ylabel)
    panel.set_xticks(range(0, count, max(1, -(-count // 12))))


def plain_ticks(axis: Any) -> None:
    """Decimal numbers on a logarithmic axis, however little of a decade it shows."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    if high < 30 * low:  # else powers of ten do
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _ink(share: float) -> str:
    return "black" if 0.15 < share < 0.85 else "white"


def heat(panel: Axes, grid: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str]) -> None:
    """Shares between 0 and 1 as coloured cells that say their number; None is an empty cell."""
    values = [[float("nan") if v is None else v for v in line] for line in grid]
    panel.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for i, line in enumerate(grid):
        for j, value in enumerate(line):
            if value is not None:
                panel.text(j, i, f"{value:.0%}", ha="center", va="center", fontsize=8, color=_ink(value))
    panel.set_xticks(range(len(columns)), columns)
    panel.set_yticks(range(len(rows)), rows)
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
