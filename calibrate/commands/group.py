"""The `calibrate` group: errors as one line, and the options several commands share."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import click

from ...runtime import CheckpointError, SidecarError
from ...runtime.errors import os_reason
from ...runtime.files import holds_half
from ...runtime.reading.chunks import is_out_of_memory
from ...runtime.sidecar.plan import METHODS as RUNTIME_METHODS
from ..console import writable
from ..errors import UserError, first_line
from ..lengths import parse_lengths
from ..sidecars import producer_version
from ..work.processes import LOST, complain, end, is_loss

METHODS = ("auto", *RUNTIME_METHODS)


class Commands(click.Group):
    """Every error ends as one line on stderr and an exit code; nobody is shown a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (UserError, CheckpointError, SidecarError, ValueError) as error:
            fail(first_line(error, 600))
        except OSError as error:
            raise click.exceptions.Exit(_refused(error)) from None
        except ImportError as error:
            fail(f"{first_line(error, 400)}; install it, and see `calibrate env` for what is here")
        except (MemoryError, RuntimeError) as error:
            if is_loss(error):
                fail(LOST)
            if not is_out_of_memory(error) and "out of memory" not in str(error):
                raise
            fail("out of memory; give a smaller measure.batch_tokens in the recipe, or shorter --lengths")

    def main(self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any) -> Any:
        try:
            arguments = list(sys.argv[1:] if args is None else args)
            _check(arguments)
            code = super().main(arguments, *more, **{**kwargs, "standalone_mode": False}) or 0
        except UserError as error:
            complain(str(error))
            code = 1
        except click.ClickException as error:
            # A group without a command raises its help, in the versions of click that raise at all.
            helped = isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ()))
            click.echo(error.format_message() if helped else f"Error: {error.format_message()}", err=True)
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("Error: interrupted; run the same command again to go on", err=True)
            code = 130
        except OSError as error:  # help and the version are printed before any command is invoked
            code = _refused(error)
        if not writable(sys.stdout):
            code = code or 1
        end(code)


def _refused(error: OSError) -> int:
    """Say what the system refused, by its own reason. A reader of our output that has gone (`| head`) is no error."""
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    printing = any(frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))
    name = error.filename if isinstance(error.filename, str) else ""
    where = "standard output: " if printing else f"{name[-200:]}: " if name else ""
    complain(where + os_reason(error))
    return 1


def _check(arguments: list[str]) -> None:
    """Refuse what no option of ours can mean: bytes that are not text, an empty value, nowhere to print to."""
    if sys.stdout is None:
        raise UserError("standard output is closed; send it to a file or to /dev/null")
    for before, argument in zip(["", *arguments], arguments):
        if holds_half(argument):
            shown = argument.encode(errors="backslashreplace").decode()
            raise click.UsageError(f"argument {shown} is not UTF-8 text; give it as UTF-8 (a file: rename it)")
        if arguments[0] != "lm-eval" and (not argument or re.fullmatch(r"--[\w-]+=", argument)):
            name = argument.rstrip("=") or (before if before.startswith("-") else "an argument")
            raise UserError(f"{name} is empty; give it a value or leave it out")


def fail(message: str) -> None:
    complain(message)
    raise click.exceptions.Exit(1)


def lengths_callback(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    try:
        return None if value is None else parse_lengths(value)
    except UserError as error:
        raise click.BadParameter(str(error)) from None


def one_text(ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> str | None:
    """Of an option that may be given once; click would silently take the last."""
    if len(value) > 1:
        raise click.BadParameter(f"{', '.join(value)}: this reads one text, and only run takes several; give one.")
    return value[0] if value else None


class Number(click.FloatRange):
    """A finite number in a range: nan is in every range to click, because no comparison with it holds."""

    def convert(self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None) -> float:
        found: float = super().convert(value, parameter, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number.", parameter, ctx)
        return found


SEED = click.IntRange(0, 2**32 - 1)  # a recipe's range
COUNT = click.IntRange(1, 100_000)  # of windows and trials: more than any text holds, less than memory does


def grouped(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


model_options = grouped(
    click.option("--model", required=True, help="Hub id, local folder, demo or demo-mamba2."),
    click.option("--revision", help="Branch, tag or commit of a Hub model."),
)
place_options = grouped(
    click.option(
        "--device", default="auto", show_default=True, help="auto, cpu or cuda; spread: a hybrid over all GPUs."
    ),
    click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")


def emit(found: Any, as_json: bool, render: Callable[[Any], str]) -> None:
    """Print what a command found: as one JSON document, or as `render` writes it for people."""
    click.echo(json.dumps(found) if as_json else render(found))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(producer_version())
def cli() -> None:
    """Calibrate Mamba language models for lengths beyond the one they were trained at."""
