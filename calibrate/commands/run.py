"""`calibrate run`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import click

from ...runtime import load
from ...runtime.checkpoint.source import expand
from ..console import hush
from ..errors import UserError
from ..work.processes import join, leave
from .group import COUNT, METHODS, SEED, cli, emit, json_option, lengths_callback, model_options, place_options


@cli.command()
@model_options
@click.option(
    "--texts",
    multiple=True,
    help="demo, a file, a folder, - or a Hub data set name[:config][#split][@column]; "
    "given again: other kinds of text that picks have to hold on.",
)
@click.option("--recipe", "recipe_name", help="Recipe name or YAML file [default: the model's own, else default].")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: MODEL.longscan.safetensors]")
@click.option("--method", type=click.Choice(METHODS), help="Limit the candidates [default: the recipe's].")
@click.option("--lengths", callback=lengths_callback, help="Target lengths, such as 4k,8k,16k [default: the recipe's].")
@click.option("--train-length", type=click.IntRange(1), help="Training length [default: the recipe's or model's].")
@click.option("--objective", type=click.Choice(("perplexity", "passkey", "mixed")), help="[default: the recipe's]")
@click.option("--samples", type=COUNT, help="Windows a length, half of them at the longest [default: the recipe's].")
@place_options
@click.option("--seed", type=SEED, help="Of every draw [default: the recipe's, mostly 0].")
@click.option("--workdir", type=click.Path(path_type=Path, file_okay=False), help="Its journal [default: OUT.work].")
@click.option("--plan", "only_plan", is_flag=True, help="Print lengths, windows, tokens, time and memory, and stop.")
@click.option("--resume/--fresh", default=True, help="Go on from what the journal has of this run, or forget that.")
@json_option
def run(
    model: str,
    revision: str | None,
    texts: tuple[str, ...],
    recipe_name: str | None,
    out: Path | None,
    method: str | None,
    lengths: list[int] | None,
    train_length: int | None,
    objective: Any,
    samples: int | None,
    device: str,
    dtype: str,
    seed: int | None,
    workdir: Path | None,
    only_plan: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Calibrate a model and write its sidecar.

    Under `torchrun --nproc-per-node K -m longscan.calibrate run ...` K processes share the work, to the same sidecar.
    """
    from ..recipe.published import recipe_train_length
    from ..recipe.recipe import load_recipe, recipe_for_model
    from ..report.inspect import describe, render
    from ..run import calibrate, plan
    from ..stages.job import Options

    recipe = load_recipe(recipe_name or recipe_for_model(model))
    folder = expand(model)
    name = (folder.resolve() if folder.is_dir() else folder).name  # "." has none of its own
    out = out or Path(f"{name}.longscan.safetensors")
    if not out.parent.is_dir():
        raise UserError(f"no folder {out.parent}; create it or give another --out")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"folder {out.parent} cannot be written; give another --out")
    processes, device = join(device)
    if processes.rank:
        hush()
    lm = load(model, device=device, dtype=dtype, revision=revision)
    L = train_length or recipe_train_length(recipe, lm.source.name) or lm.config.train_length
    if L is None:
        raise UserError(f"{model} does not say what length it was trained at; give --train-length")
    targets = lengths or recipe.target_lengths(L)
    options = Options(
        texts=texts or (recipe.texts.run,),
        lengths=tuple(targets),
        method=method or recipe.method,
        objective=objective or recipe.objective,
        samples=samples or recipe.samples,
        seed=recipe.seed if seed is None else seed,
        train_length=L,
        workdir=workdir or out.with_name(out.name + ".work"),
        resume=resume,
    )
    if only_plan:
        leave()
        if processes.rank:
            return
        planned = plan(lm, recipe, options)
        emit(planned.to_json(), as_json, lambda _: "\n".join(planned.lines()))
        return
    found = calibrate(lm, recipe, options, processes)
    leave()
    if processes.rank:
        return
    found.sidecar.write(out)
    document = {
        "sidecar": str(out),
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "train_length": L,
        "bands": found.bands,
        "scores": found.scores,
        "cost": found.cost,
        "seconds": found.seconds,
        "tokens": found.tokens,
    }
    told = f"wrote {out} ({found.seconds:.0f} s, {found.tokens:,} tokens; cost {found.cost:.1f})"
    emit(document, as_json, lambda _: f"{render(describe(found.sidecar))}\n\n{told}")
