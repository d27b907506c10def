"""`calibrate report`: one HTML file with everything in it, no script, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.sidecar.sidecar import Sidecar
from ..documents import Run, read_document
from ..errors import UserError
from ..summary import (
    Facts,
    calibrated_lengths,
    command,
    headline,
    label,
    mean_distances,
    score_tables,
    to_yaml,
    windows_judged,
)
from .inspect import LAYER_HEAD, layer_cells, layer_rows
from .plots import Picture, tokens

TIMES = ("eval-prefill-time", "prefill-time")  # figures
_NO_TIMES = "Not measured: a sidecar holds no times. Add --eval FILE (calibrate eval --json), or --analyze."
_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff; margin: 0 auto; padding: 0 16px 48px;
  max-width: 1560px; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 1.2rem 0 0; } h2 { font-size: 1.25rem; margin: 2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; } p { margin: .3rem 0; max-width: 72ch; }
.figures { display: grid; gap: 24px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
figure { margin: 0; } figure img { width: 100%; max-width: 560px; height: auto; display: block; }
figcaption { font-size: .875rem; color: #4a5568; max-width: 560px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .4rem 0; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid #e2e8f0; vertical-align: top; }
.wide th, .wide td { overflow-wrap: normal; }
.numbers th, .numbers td { text-align: right; white-space: nowrap; }
.facts td:first-child { color: #4a5568; white-space: nowrap; }
.tables { display: flex; flex-wrap: wrap; gap: 8px 48px; } .tables > div { max-width: 100%; }
@media (max-width: 600px) { th, td { padding-right: 7px; font-size: .8rem; } .numbers th { white-space: normal; } }
pre { background: #f5f7fa; padding: 10px; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; }
"""


def render(
    side: Sidecar,
    name: str,
    data: bytes,
    groups: Sequence[tuple[str, Sequence[Picture]]],
    mean_distance: Sequence[float] | None = None,
    run: Mapping[str, Any] | None = None,
) -> str:
    """The page. name, data: the sidecar's file. groups: (heading, pictures), drawn as SVG.

    mean_distance: one value a layer where it was measured just now, for sidecars that do not record it.
    run: what `calibrate run --json` printed when it made the sidecar, see read_run.
    """
    base = html.escape(side.metadata["base_model"])
    told = headline(side) or f"What the sidecar of {side.metadata['base_model']} does at each length."
    parts = [
        f"<h1>{base} beyond {side.train_length:,} tokens</h1>",
        f"<p>{html.escape(told)}</p>",
        _section("Summary", _facts(side, name, data, run)),
        _section("Picks", _picks(side)),
    ]
    tables = [f"<div><h3>{html.escape(t)}</h3>{_table(head, rows)}</div>" for t, head, rows in score_tables(side)]
    if tables:
        note = "<p>Held-out text of the calibration. * is what auto does at that length.</p>"
        parts.append(_section("Measured", f'<div class="tables">{"".join(tables)}</div>{note}'))
    for heading, pictures in groups:
        if pictures:
            drawn = "".join(_figure(picture) for picture in pictures)
            parts.append(_section(heading, f'<div class="figures">{drawn}</div>'))
    if not any(picture.name in TIMES for _, pictures in groups for picture in pictures):
        parts.append(_section("Prefill time", f"<p>{_NO_TIMES}</p>"))
    parts += [
        _section(f"Layers at {tokens(calibrated_lengths(side)[-1])} tokens", _layers(side, mean_distance)),
        _section("Recipe", _recipe(side)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{base}: LongScan report</title><style>{_CSS}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def read_run(path: Path, sidecar: bytes) -> dict[str, Any]:
    """A document of `calibrate run --json`. Raises UserError if it is none, or of another sidecar than these bytes."""
    document = read_document(path, Run, "--run", "run")
    if document["sha256"] != hashlib.sha256(sidecar).hexdigest():
        raise UserError(f"{path.name} belongs to another sidecar (another sha256); give this one's, or leave it out")
    return document


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>\n{body}</section>"


def _figure(picture: Picture) -> str:
    """As an image, not inline: the ids inside one SVG cannot meet those of another."""
    data = base64.b64encode(picture.svg).decode()
    alt = html.escape(f"{picture.title}. {picture.caption}")
    return (
        f'<figure id="{picture.name}"><h3>{html.escape(picture.title)}</h3>'
        f'<img alt="{alt}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "numbers") -> str:
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><tr>{header}</tr>{body}</table></div>'


def _facts(side: Sidecar, name: str, data: bytes, run: Mapping[str, Any] | None) -> str:
    meta, made = side.metadata, Facts.of(side).calibration
    revision = meta["base_model_revision"]
    facts = [
        ("model", meta["base_model"] + (f" at {revision}" if revision else "")),
        (
            "shape",
            f"{meta['n_layer']} layers of {int(meta['channels']):,} channels, trained at {side.train_length:,} tokens",
        ),
        ("fingerprint", meta["model_fingerprint"]),
        (
            "texts",
            f"{made.get('texts')}, {made.get('tokens', 0):,} tokens, sha256 {str(made.get('texts_sha256', ''))[:16]}",
        ),
        ("calibrated lengths", ", ".join(tokens(n) for n in calibrated_lengths(side))),
        *([("rotary factors", ", ".join(f"{tokens(n)}: {f:g}" for n, f in side.rotary.items()))] * bool(side.rotary)),
        ("objective", f"{made.get('objective')}, decided on {windows_judged(side)}, seed {made.get('seed')}"),
        (
            "measured on",
            f"{made.get('device')}, {made.get('dtype')}; {made.get('windows')} windows of the training length",
        ),
        (
            "cost",
            "give --run the output of calibrate run --json: equal runs are equal bytes, so the sidecar keeps no time"
            if run is None
            else f"{run['seconds']:.0f} s; read {run['tokens']:,} tokens, {run['cost']:.1f} times the held-out windows",
        ),
        ("sidecar", f"{name}, {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()}"),
        ("made by", f"{meta['producer']} {meta['producer_version']}"),
    ]
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts)
    return f'<table class="facts">{rows}</table>'


def _length(item: tuple[str, float]) -> int:
    return int(item[0])


def _picks(side: Sidecar) -> str:
    rows = []
    for b, band in enumerate(side.bands):
        keep = ", ".join(f"layer {layer} keeps {n:,}" for layer, n in side.keep(b).items())
        keep += f" ({band.score} channels scored)" if keep else ""
        mass = ", ".join(f"{tokens(int(n))}: {m:.2f}" for n, m in sorted(band.mass.items(), key=_length))
        theta = "" if band.log_theta is None else f"e^{band.log_theta:.1f}"
        rows.append([", ".join(tokens(n) for n in band.lengths), label(band.method), theta, mass, keep, band.g_fit])
    head = ["lengths", "auto does", "theta", "mass factor m(S)", "decimation", "g fit"]
    return _table(head, rows, "words") + "<p>Up to the training length the model is always read plainly.</p>"


def _layers(side: Sidecar, mean_distance: Sequence[float] | None) -> str:
    channels, layers = int(side.metadata["channels"]), layer_rows(side, calibrated_lengths(side)[-1], mean_distance)
    rows = [layer_cells(row, channels, absent="", thousands=",") for row in layers]
    missing = ""
    if mean_distance is None and mean_distances(side) is None:
        missing = "<p>This sidecar does not record mean distances; calibrate again, or use --analyze.</p>"
    return _table(LAYER_HEAD, rows) + missing


def _recipe(side: Sidecar) -> str:
    recipe = to_yaml(Facts.of(side).recipe)
    calibration = {k: v for k, v in Facts.of(side).calibration.items() if k != "layers"}
    return (
        f"<pre>{html.escape(command(side))}</pre><p>with this recipe.yaml:</p><pre>{html.escape(recipe)}</pre>"
        f"<p>What the calibration recorded:</p><pre>{html.escape(json.dumps(calibration, indent=1))}</pre>"
    )
