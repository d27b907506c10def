"""Figures of `calibrate eval --json` documents: perplexity, recall by depth, time to read a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...runtime.sidecar.sidecar import Sidecar
from ..console import say
from ..documents import Evaluation, read_document
from ..errors import UserError
from ..summary import label, ordered
from .plots import Picture, against_length, axes, curves, heat, tokens

TITLES = {"passkey": "passkeys"}


def read_eval(path: Path) -> dict[str, Any]:
    """A document of `calibrate eval --json`. Raises UserError if it is none."""
    return read_document(path, Evaluation, "--eval", "eval")


def check_model(document: dict[str, Any], side: Sidecar, file: str) -> None:
    """Raise UserError for an evaluation of another model than the sidecar's; a copy's other name is said."""
    theirs, ours = document["model"], side.metadata["base_model"]
    if document["model_fingerprint"] not in (None, side.metadata["model_fingerprint"]):
        raise UserError(
            f"{file} was measured on another model ({theirs}, not {ours}); give this one's, or leave it out"
        )
    if theirs is not None and _bare(theirs) != _bare(ours):
        say(f"{file} was measured on {theirs}, the sidecar was made for {ours}; leave it out unless they are one model")


def _bare(model: str) -> str:
    """A name alike for a repository, a folder that holds it, and both layouts."""
    return model.rpartition("/")[2].casefold().removesuffix("-hf")


def pictures(documents: Sequence[dict[str, Any]], train_length: int, *, times: bool = True) -> list[Picture]:
    """One picture a document and, with `times`, how long the first perplexity evaluation took to read a window."""
    found = []
    for index, document in enumerate(documents):
        draw = _perplexity if document["task"] == "perplexity" else _recall
        found.append(draw(document, train_length, f"{index + 1}"))
    timed = next((document for document in documents if document["task"] == "perplexity"), None)
    rows = [
        (row["length"], row["method"], row["seconds"] / row["windows"])
        for row in (timed["rows"] if timed is not None else [])
        if row["seconds"] is not None
    ]
    if times and timed is not None and rows:
        where = timed.get("machine", {}).get("device", "an unnamed machine")
        caption = f"From the evaluation, on {where}; mean of its windows; the first cell includes warming up."
        found.append(prefill_times(rows, train_length, caption))
    return found


def prefill_times(
    rows: Sequence[tuple[int, str, float]], train_length: int, caption: str, name: str = "eval-prefill-time"
) -> Picture:
    """rows: (length, method, seconds a prompt)."""
    lengths = sorted({length for length, _, _ in rows})
    with axes() as (figure, [panel]):
        curves(panel, rows)
        against_length(panel, lengths, train_length, "seconds a prompt", log=True)
    return Picture(name, "Prefill time by method and length", caption, figure)


def _perplexity(document: dict[str, Any], train_length: int, number: str) -> Picture:
    rows = document["rows"]
    with axes() as (figure, [panel]):
        has = [row for row in rows if row["value"] is not None]
        curves(panel, [(row["length"], row["method"], row["value"], row.get("stderr") or 0) for row in has])
        lengths, unit = [row["length"] for row in rows], document.get("unit", "perplexity")
        against_length(panel, lengths, train_length, unit, log=True)
    caption = f"calibrate eval, protocol {document.get('protocol')}, {rows[0]['windows']} windows; {_where(document)}."
    return Picture(f"eval-perplexity-{number}", "Evaluation: perplexity against length", caption, figure)


def _recall(document: dict[str, Any], train_length: int, number: str) -> Picture:
    rows = document["rows"]
    methods, lengths = ordered([row["method"] for row in rows]), sorted({row["length"] for row in rows})
    cells = {(row["method"], row["length"]): row for row in rows}
    depths = list(rows[0].get("depths") or {})
    with axes(len(methods), height=0.5 + len(methods) * (0.75 + 0.2 * max(1, len(depths)))) as (figure, panels):
        for panel, method in zip(panels, methods):
            mine = [cells.get((method, n), {"value": None}) for n in lengths]
            grid = [[(row.get("depths") or {}).get(depth) for row in mine] for depth in depths]
            whole = [[row["value"] for row in mine]]
            heat(panel, grid or whole, [f"{float(depth):.0%}" for depth in depths] or [""], [*map(tokens, lengths)])
            if depths:
                panel.set_ylabel("depth")
            panel.set_title(label(method), loc="left")
        panels[-1].set_xlabel("tokens read")
    task, title = document["task"], TITLES.get(document["task"], document["task"])
    caption = f"calibrate eval --task {task}, {rows[0]['windows']} trials a cell of length; {_where(document)}."
    return Picture(f"eval-{title}-{number}", f"Evaluation: {title} by depth and length", caption, figure)


def _where(document: dict[str, Any]) -> str:
    machine = document.get("machine", {})
    return f"{document.get('model')} on {machine.get('device', 'an unnamed machine')}, {machine.get('dtype', '?')}"
