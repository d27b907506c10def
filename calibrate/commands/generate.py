"""`calibrate generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ...runtime import load
from ...runtime.errors import os_reason
from ..console import say
from ..errors import UserError
from ..speed import Watch, summary
from ..texts.files import standard_input
from .group import METHODS, SEED, Number, cli, model_options, place_options


@cli.command()
@model_options
@click.option("--sidecar", help="File or Hub repository.")
@click.option("--prompt", help="Text to continue.")
@click.option("--prompt-file", help="File with the text, - for standard input.")
@click.option("--max-new-tokens", type=click.IntRange(0), default=128, show_default=True)
@click.option("--temperature", type=Number(0), default=0.0, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True)
@click.option("--top-p", type=Number(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--min-p", type=Number(0, 1), default=0.0, show_default=True)
@click.option("--repetition-penalty", type=Number(1e-30, 1e30), default=1.0, show_default=True, help="1 = none.")
@click.option("--stop", multiple=True, help="End at this text; may be given several times.")
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True)
@click.option("--chunk", type=click.IntRange(1), help="Tokens read at once; by default from the device's memory.")
@click.option(
    "--filter-decode/--no-filter-decode",
    default=None,
    help="Filter generated tokens too [default: as the sidecar says].",
)
@place_options
@click.option("--seed", type=SEED, help="For sampling.")
def generate(
    model: str,
    revision: str | None,
    sidecar: str | None,
    prompt: str | None,
    prompt_file: str | None,
    max_new_tokens: int,
    filter_decode: bool | None,
    device: str,
    dtype: str,
    **options: Any,
) -> None:
    """Continue a text, printing as it goes. Ctrl-C ends it; speeds are printed on stderr at the end."""
    if (prompt is None) == (prompt_file is None):
        raise click.UsageError("give either --prompt or --prompt-file")
    text = prompt if prompt is not None else _read_prompt(prompt_file or "")
    if not text:
        raise UserError("the prompt is empty; give at least one character")
    lm = load(model, sidecar, device=device, dtype=dtype, revision=revision, filter_decode=filter_decode)
    watch = Watch()
    pieces = lm.generate(text, max_new_tokens, watch=watch, **options)
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
    except KeyboardInterrupt:  # while printing; while computing, the generation ends by itself
        watch.interrupted = True
    finally:
        watch.close()
    click.echo()
    say(summary(watch, lm))
    if watch.interrupted:
        raise click.exceptions.Exit(130)


def _read_prompt(name: str) -> str:
    try:
        data = standard_input().read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read --prompt-file {name}: {os_reason(error)}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
