"""`calibrate inspect`."""

from __future__ import annotations

import json

import click

from ...runtime import Sidecar
from .group import cli, json_option


@cli.command()
@click.argument("sidecar")
@json_option
def inspect(sidecar: str, as_json: bool) -> None:
    """Show what a sidecar (a file or a Hub repository) holds."""
    from ..inspect import describe, render

    found = describe(Sidecar.read(sidecar))
    click.echo(json.dumps(found) if as_json else render(found))
