"""The `calibrate` group: errors as one line, and the options several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ...runtime import CheckpointError, SidecarError
from ...runtime.sidecar.plan import METHODS as RUNTIME_METHODS
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
            where = f" ({error.filename})" if error.filename else ""
            fail(f"{error.strerror or first_line(error)}{where}; free some space or choose another place")
        except MemoryError:
            fail("out of memory; give a smaller measure.batch_tokens in the recipe, or shorter --lengths")
        except RuntimeError as error:
            if is_loss(error):
                fail(LOST)
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            fail("out of memory; give a smaller measure.batch_tokens in the recipe, or shorter --lengths")

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False}) or 0
        except click.ClickException as error:
            # A group without a command raises its help, in the versions of click that raise at all.
            helped = isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ()))
            click.echo(error.format_message() if helped else f"Error: {error.format_message()}", err=True)
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            click.echo("Error: interrupted; run the same command again to go on", err=True)
            code = 130
        end(code)


def fail(message: str) -> None:
    complain(message)
    raise click.exceptions.Exit(1)


def lengths_callback(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    try:
        return None if value is None else parse_lengths(value)
    except UserError as error:
        raise click.BadParameter(str(error)) from None


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
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16."),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON document.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(producer_version())
def cli() -> None:
    """Calibrate Mamba language models for lengths beyond the one they were trained at."""
