"""run, inspect, eval and generate: options in, one document or a few lines out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..runtime import LM, CheckpointError, Sidecar, SidecarError, load
from .errors import UserError, first_line
from .lengths import parse_lengths

METHODS = ("auto", "none", "filter", "decimate", "both")


class Commands(click.Group):
    """Every error ends as one line on stderr and an exit code; nobody is shown a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (UserError, CheckpointError, SidecarError, ValueError) as error:
            _fail(first_line(error, 600))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            _fail(f"{error.strerror or first_line(error)}{where}; free some space or choose another place")
        except MemoryError:
            _fail("out of memory; give a smaller measure.batch_tokens in the recipe, or shorter --lengths")
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            _fail("out of memory; give a smaller measure.batch_tokens in the recipe, or shorter --lengths")

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}))
        except click.ClickException as error:
            click.echo(f"Error: {error.format_message()}", err=True)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("Error: interrupted; run the same command again to go on", err=True)
            sys.exit(130)


def _fail(message: str) -> None:
    click.echo(f"Error: {message}", err=True)
    raise click.exceptions.Exit(1)


def _lengths(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    try:
        return None if value is None else parse_lengths(value)
    except UserError as error:
        raise click.BadParameter(str(error)) from None


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_model = _options(
    click.option("--model", required=True, help="Hub id, local folder, or demo."),
    click.option("--revision", help="Branch, tag or commit of a Hub model."),
)
_place = _options(
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16."),
)
_json = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="longscan")
def cli() -> None:
    """Calibrate Mamba language models for lengths beyond the one they were trained at."""


@cli.command()
@_model
@click.option("--texts", help="demo, a file, a folder, - or a Hub data set name[:config][#split][@column].")
@click.option("--recipe", "recipe_name", help="Recipe name or YAML file [default: the model's own, else default].")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: MODEL.longscan.safetensors]")
@click.option("--method", type=click.Choice(METHODS), help="Limit the candidates [default: the recipe's].")
@click.option("--lengths", callback=_lengths, help="Target lengths, such as 4k,8k,16k.")
@click.option("--train-length", type=click.IntRange(1), help="Length the model was trained at, if it does not say.")
@click.option("--objective", type=click.Choice(("perplexity", "passkey", "mixed")), help="What is optimised.")
@click.option("--samples", type=click.IntRange(1), help="Windows per length.")
@_place
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--workdir", type=click.Path(path_type=Path, file_okay=False), help="Journal [default: OUT.work].")
@click.option("--resume/--fresh", default=True, help="Go on from the journal, or start afresh.")
@_json
def run(
    model: str,
    revision: str | None,
    texts: str | None,
    recipe_name: str | None,
    out: Path | None,
    method: str | None,
    lengths: list[int] | None,
    train_length: int | None,
    objective: Any,
    samples: int | None,
    device: str,
    dtype: str,
    seed: int,
    workdir: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Calibrate a model and write its sidecar."""
    from .published import recipe_train_length
    from .recipe import load_recipe, recipe_for_model
    from .run import Options, calibrate

    recipe = load_recipe(recipe_name or recipe_for_model(model))
    out = out or Path(f"{Path(model).name}.longscan.safetensors")
    if not (out.parent.is_dir()):
        raise UserError(f"no folder {out.parent}; create it or give another --out")
    lm = load(model, device=device, dtype=dtype, revision=revision)
    L = train_length or recipe_train_length(recipe, lm.source.name) or lm.config.train_length
    if L is None:
        raise UserError(f"{model} does not say what length it was trained at; give --train-length")
    targets = lengths or recipe.target_lengths(L)
    options = Options(
        texts=texts or recipe.texts.run,
        lengths=tuple(targets),
        method=method or recipe.method,
        objective=objective or recipe.objective,
        samples=samples or recipe.samples,
        seed=seed,
        train_length=L,
        workdir=workdir or out.with_name(out.name + ".work"),
        resume=resume,
    )
    found = calibrate(lm, recipe, options)
    found.sidecar.write(out)
    document = {
        "sidecar": str(out),
        "sha256": _sha256(out),
        "train_length": L,
        "bands": found.bands,
        "scores": found.scores,
        "cost": found.cost,
        "seconds": found.seconds,
        "tokens": found.tokens,
    }
    if as_json:
        click.echo(json.dumps(document))
        return
    from .inspect import describe, render

    click.echo(render(describe(found.sidecar)))
    click.echo(f"\nwrote {out} ({found.seconds:.0f} s, {found.tokens:,} tokens; cost {found.cost:.1f})")


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


@cli.command()
@click.argument("sidecar")
@_json
def inspect(sidecar: str, as_json: bool) -> None:
    """Show what a sidecar (a file or a Hub repository) holds."""
    from .inspect import describe, render

    found = describe(Sidecar.read(sidecar))
    click.echo(json.dumps(found) if as_json else render(found))


@cli.command("eval")
@_model
@click.option("--sidecar", help="File or Hub repository.")
@click.option("--texts", help="As for run [default: the recipe's evaluation text].")
@click.option("--task", type=click.Choice(("perplexity", "passkey")), default="perplexity", show_default=True)
@click.option("--lengths", callback=_lengths, help="[default: the training length and the sidecar's lengths]")
@click.option("--methods", help="Comma-separated: none,filter,decimate,both,auto [default: all the sidecar has].")
@click.option("--windows", type=click.IntRange(1), help="Windows (perplexity), trials a depth (passkey).")
@click.option("--protocol", type=click.Choice(("paired", "pg19")), default="paired", show_default=True)
@_place
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_json
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
    """Measure perplexity or passkeys at several lengths and methods."""
    from .evaluate import Request, available, evaluate
    from .recipe import load_recipe, recipe_for_model
    from .run import encode
    from .table import render
    from .texts import read_texts

    recipe = load_recipe(recipe_for_model(model))
    lm = load(model, sidecar, device=device, dtype=dtype, revision=revision)
    targets = lengths or _default_lengths(lm)
    chosen = available(lm, targets) if methods is None else tuple(m.strip() for m in methods.split(","))
    unknown = [m for m in chosen if m not in METHODS]
    if unknown:
        raise click.BadParameter(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    documents = encode(lm, read_texts(texts or recipe.texts.eval, role="eval"))
    request = Request(
        task,
        tuple(targets),
        chosen,
        windows,
        protocol,
        seed,
        recipe.measure.batch_tokens,
    )
    document = evaluate(lm, documents, request)
    train_length = lm.sidecar.train_length if lm.sidecar else lm.config.train_length
    click.echo(json.dumps(document) if as_json else render(document, train_length))


def _default_lengths(lm: LM) -> list[int]:
    if lm.sidecar is not None:
        return [lm.sidecar.train_length, *(n for band in lm.sidecar.bands for n in band.lengths)]
    if lm.config.train_length is None:
        raise UserError("the model does not say what length it was trained at; give --lengths")
    return [lm.config.train_length * factor for factor in (1, 2, 4, 8)]


@cli.command()
@_model
@click.option("--sidecar", help="File or Hub repository.")
@click.option("--prompt", help="Text to continue.")
@click.option("--prompt-file", help="File with the text, - for standard input.")
@click.option("--max-new-tokens", type=click.IntRange(0), default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--stop", multiple=True, help="End at this text; may be given several times.")
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True)
@_place
@click.option("--seed", type=click.IntRange(0), help="For sampling.")
def generate(
    model: str,
    revision: str | None,
    sidecar: str | None,
    prompt: str | None,
    prompt_file: str | None,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    stop: tuple[str, ...],
    method: str,
    device: str,
    dtype: str,
    seed: int | None,
) -> None:
    """Continue a text, printing as it goes."""
    if (prompt is None) == (prompt_file is None):
        raise click.UsageError("give either --prompt or --prompt-file")
    text = prompt if prompt is not None else _read_prompt(prompt_file or "")
    if not text:
        raise UserError("the prompt is empty; give at least one character")
    lm = load(model, sidecar, device=device, dtype=dtype, revision=revision)
    pieces = lm.generate(
        text,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop=stop,
        method=method,
        seed=seed,
    )
    for piece in pieces:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def _read_prompt(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode()
    except FileNotFoundError:
        raise UserError(f"no file {name}; check --prompt-file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from None
