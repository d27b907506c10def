"""`calibrate lm-eval`."""

from __future__ import annotations

import click

from ..errors import UserError
from .group import cli


@cli.command("lm-eval", context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def harness(arguments: tuple[str, ...]) -> None:
    """Run EleutherAI's harness with --model longscan.

    All ARGUMENTS are the harness's own; the model class `longscan` is registered first.
    """
    try:
        from ..evaluate.harness import main
    except ImportError as error:
        if error.name and error.name.split(".")[0] != "lm_eval":
            raise
        raise UserError('the harness is not installed; run: pip install "longscan[lm-eval]"') from error
    main(arguments)
