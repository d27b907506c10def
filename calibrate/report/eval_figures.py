"""Figures of `calibrate eval --json` documents: perplexity, passkeys by depth, time to read a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..documents import Evaluation, read_document
from ..summary import label, ordered
from .plots import Picture, axes, colour, heat, length_axis, plain_ticks, tokens


def read_eval(path: Path) -> dict[str, Any]:
    """A document of `calibrate eval --json`. Raises UserError if it is none."""
    return read_document(path, Evaluation, "--eval", "eval")


def pictures(documents: Sequence[dict[str, Any]], train_length: int, *, times: bool = True) -> list[Picture]:
    """One picture a document and, with `times`, how long the first perplexity evaluation took to read a window."""
    found = []
    for index, document in enumerate(documents):
        draw = _passkeys if document.get("task") == "passkey" else _perplexity
        found.append(draw(document, train_length, f"{index + 1}"))
    timed = next((document for document in documents if document.get("task") != "passkey"), None)
    if times and timed is not None:
        rows = [(row["length"], row["method"], row["seconds"] / row["windows"]) for row in timed["rows"]]
        where = timed.get("machine", {}).get("device", "an unnamed machine")
        found.append(
            prefill_times(
                rows,
                train_length,
                f"From the evaluation, on {where}; mean of its windows; the first cell includes warming up.",
            )
        )
    return found


def prefill_times(
    rows: Sequence[tuple[int, str, float]], train_length: int, caption: str, name: str = "eval-prefill-time"
) -> Picture:
    """rows: (length, method, seconds a prompt)."""
    lengths = sorted({length for length, _, _ in rows})
    with axes() as (figure, [panel]):
        for index, method in enumerate(ordered([m for _, m, _ in rows])):
            points = sorted((n, seconds) for n, m, seconds in rows if m == method)
            style = "o--" if method == "auto" else "o-"
            x, y = [n for n, _ in points], [s for _, s in points]
            panel.plot(x, y, style, ms=4, color=colour(method, index), label=label(method))
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
        length_axis(panel, lengths, train_length)
        panel.set_ylabel("seconds a prompt")
        panel.legend()
    return Picture(name, "Prefill time by method and length", caption, figure)


def _perplexity(document: dict[str, Any], train_length: int, number: str) -> Picture:
    rows = document["rows"]
    with axes() as (figure, [panel]):
        for index, method in enumerate(ordered([row["method"] for row in rows])):
            mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["length"])
            panel.errorbar(
                [row["length"] for row in mine],
                [row["value"] for row in mine],
                [row.get("stderr") or 0 for row in mine],
                fmt="o--" if method == "auto" else "o-",
                ms=4,
                capsize=2,
                color=colour(method, index),
                label=label(method),
            )
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
        length_axis(panel, [row["length"] for row in rows], train_length)
        panel.set_ylabel(document.get("unit", "perplexity"))
        panel.legend()
    caption = f"calibrate eval, protocol {document.get('protocol')}, {rows[0]['windows']} windows; {_where(document)}."
    return Picture(f"eval-perplexity-{number}", "Evaluation: perplexity against length", caption, figure)


def _passkeys(document: dict[str, Any], train_length: int, number: str) -> Picture:
    rows = document["rows"]
    methods, lengths = ordered([row["method"] for row in rows]), sorted({row["length"] for row in rows})
    cells = {(row["method"], row["length"]): row for row in rows}
    depths = list(rows[0].get("depths") or {})
    with axes(len(methods), height=0.5 + len(methods) * (0.75 + 0.2 * max(1, len(depths)))) as (figure, panels):
        for panel, method in zip(panels, methods):
            mine = [cells.get((method, n)) for n in lengths]
            if depths:
                grid = [
                    [None if row is None else (row.get("depths") or {}).get(depth) for row in mine] for depth in depths
                ]
                heat(panel, grid, [f"{float(depth):.0%}" for depth in depths], [tokens(n) for n in lengths])
                panel.set_ylabel("depth")
            else:
                heat(
                    panel, [[None if row is None else row["value"] for row in mine]], [""], [tokens(n) for n in lengths]
                )
            panel.set_title(label(method), loc="left")
        panels[-1].set_xlabel("tokens read")
    caption = f"calibrate eval --task passkey, {rows[0]['windows']} trials a cell of length; {_where(document)}."
    return Picture(f"eval-passkeys-{number}", "Evaluation: passkeys by depth and length", caption, figure)


def _where(document: dict[str, Any]) -> str:
    machine = document.get("machine", {})
    return f"{document.get('model')} on {machine.get('device', 'an unnamed machine')}, {machine.get('dtype', '?')}"
