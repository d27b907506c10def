"""`calibrate eval`."""

from __future__ import annotations

from typing import Any

import click

from ...runtime import LM, load
from ..errors import UserError
from .group import (
    COUNT,
    METHODS,
    SEED,
    cli,
    emit,
    json_option,
    lengths_callback,
    model_options,
    one_text,
    place_options,
)

TASKS = ("perplexity", "passkey", "multikey", "variables")


@cli.command("eval")
@model_options
@click.option("--sidecar", help="File or Hub repository.")
@click.option(
    "--texts", multiple=True, callback=one_text, help="As for run, once [default: the recipe's evaluation text]."
)
@click.option("--task", type=click.Choice(TASKS), default="perplexity", show_default=True)
@click.option("--lengths", callback=lengths_callback, help="[default: the training length and the sidecar's lengths]")
@click.option("--methods", help="Comma-separated: none,filter,decimate,both,auto [default: all the sidecar has].")
@click.option("--windows", type=COUNT, help="Windows (perplexity), trials a depth (the others).")
@click.option("--protocol", type=click.Choice(("paired", "pg19")), default="paired", show_default=True)
@place_options
@click.option("--seed", type=SEED, default=0, show_default=True)
@json_option
def evaluate_command(
    model: str,
    revision: str | None,
    sidecar: str | None,
    texts: str | None,
    task: Any,
    lengths: list[int] | None,
    methods: str | None,
    windows: int | None,
    protocol: Any,
    device: str,
    dtype: str,
    seed: int,
    as_json: bool,
) -> None:
    """Measure perplexity or a recall task at several lengths and methods."""
    from ..evaluate.evaluate import Request, available, evaluate
    from ..measure.measuring import tokens_a_batch
    from ..recipe.recipe import load_recipe, recipe_for_model
    from ..report.table import render
    from ..texts.sources import read_texts
    from ..texts.tokens import encode

    asked = None if methods is None else tuple(dict.fromkeys(m.strip() for m in methods.split(",")))
    unknown = [m for m in asked or () if m not in METHODS]
    if unknown:
        raise click.BadParameter(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    if protocol == "pg19" and task != "perplexity":
        raise click.UsageError(f"--protocol pg19 is for --task perplexity, not for {task}; leave one of them out")
    recipe = load_recipe(recipe_for_model(model))
    lm = load(model, sidecar, device=device, dtype=dtype, revision=revision)
    targets = lengths or _default_lengths(lm)
    chosen = available(lm, targets) if asked is None else asked
    documents = encode(lm, read_texts(texts or recipe.texts.eval, role="eval"))
    batch_tokens = tokens_a_batch(recipe.measure.batch_tokens, lm)
    request = Request(task, tuple(targets), chosen, windows, protocol, seed, batch_tokens)
    train_length = lm.sidecar.train_length if lm.sidecar else lm.config.train_length
    emit(evaluate(lm, documents, request), as_json, lambda found: render(found, train_length))


def _default_lengths(lm: LM) -> list[int]:
    if lm.sidecar is not None:
        return [lm.sidecar.train_length, *(n for band in lm.sidecar.bands for n in band.lengths)]
    if lm.config.train_length is None:
        raise UserError("the model does not say what length it was trained at; give --lengths")
    return [lm.config.train_length * factor for factor in (1, 2, 4, 8)]
