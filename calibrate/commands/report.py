"""`calibrate report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...runtime import Sidecar, load
from ..errors import UserError
from .group import cli, emit, json_option, one_text, place_options

if TYPE_CHECKING:
    from ..report.plots import Picture


@cli.command()
@click.argument("sidecar")
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), default="report.html", show_default=True)
@click.option(
    "--eval", "evals", type=click.Path(path_type=Path), multiple=True, help="Output of eval --json; repeatable."
)
@click.option(
    "--run", "run_file", type=click.Path(path_type=Path), help="Output of the run --json that made it: the cost."
)
@click.option(
    "--figures", type=click.Path(path_type=Path, file_okay=False), help="Also write every figure here (SVG, PNG)."
)
@click.option("--analyze", is_flag=True, help="Run the model once more and draw what it attends to.")
@click.option("--model", help="For --analyze [default: the model the sidecar names].")
@click.option(
    "--texts",
    multiple=True,
    callback=one_text,
    help="For --analyze, as for eval [default: the recipe's evaluation text].",
)
@place_options
@json_option
def report(
    sidecar: str,
    out: Path,
    evals: Sequence[Path],
    run_file: Path | None,
    figures: Path | None,
    analyze: bool,
    model: str | None,
    texts: str | None,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Write a self-contained HTML report about a sidecar.

    SIDECAR is a file or a Hub repository. The page needs no script and fetches nothing.
    """
    from ...runtime.files import replacing
    from ...runtime.sidecar.sidecar import find_file
    from ..report import eval_figures
    from ..report import figures as side_figures
    from ..report.page import read_run, render

    if not out.parent.is_dir():
        raise UserError(f"no folder {out.parent}; create it or give another -o")
    if not analyze and (model or texts or device != "auto" or dtype != "auto"):
        raise click.UsageError("--model, --texts, --device and --dtype are for --analyze; give --analyze too")
    path = find_file(sidecar)
    side, data = Sidecar.read(path), path.read_bytes()
    run = None if run_file is None else read_run(run_file, data)
    documents = [eval_figures.read_eval(file) for file in evals]
    for file, document in zip(evals, documents):
        eval_figures.check_model(document, side, file.name)
    distance: list[float] | None = None
    analyzed: list[Picture] = []
    if analyze:
        distance, analyzed = _analyze(side, model, texts, device, dtype)
    groups = [
        ("What it does", side_figures.pictures(side, distance)),
        ("Evaluations", eval_figures.pictures(documents, side.train_length, times=not analyze)),
        ("The model, read again", analyzed),
    ]
    pictures = [picture for _, group in groups for picture in group]
    name = path.name if Path(sidecar).expanduser().exists() else sidecar
    page = render(side, name, data, groups, distance, run)
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    written = []
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            for kind, data in (("svg", picture.svg), ("png", picture.render("png"))):
                written.append(figures / f"{picture.name}.{kind}")
                with replacing(written[-1]) as temporary:
                    temporary.write_bytes(data)
    document = {"report": str(out), "figures": [p.name for p in pictures], "files": [str(file) for file in written]}
    emit(document, as_json, lambda _: f"wrote {out} ({len(pictures)} figures)" + (f" and {figures}" if written else ""))


def _analyze(
    side: Sidecar, model: str | None, texts: str | None, device: str, dtype: str
) -> tuple[list[float], list[Picture]]:
    """(mean distance of every layer at the training length, pictures)."""
    from ...runtime.checkpoint.source import is_known_anywhere
    from ..evaluate.evaluate import machine
    from ..recipe.recipe import load_recipe, recipe_for_model
    from ..report import analyze_figures
    from ..report.analyze import analyze as run
    from ..summary import calibrated_lengths
    from ..texts.sources import read_texts
    from ..texts.tokens import encode

    name = model or side.metadata["base_model"]
    if model is None and not is_known_anywhere(name):
        raise UserError(f"the sidecar names the local model {name!r}; give its folder with --model")
    revision = side.metadata["base_model_revision"] or None if model is None else None
    lm = load(name, side, device=device, dtype=dtype, revision=revision)
    source = texts or load_recipe(recipe_for_model(name)).texts.eval
    analysis = run(lm, encode(lm, read_texts(source, role="eval")), calibrated_lengths(side))
    found = machine(lm)
    return analysis.distances[side.train_length], analyze_figures.pictures(
        analysis, f"{found['device']}, {found['dtype']}"
    )
