"""`calibrate inspect`."""

from __future__ import annotations

import json

import click

from ...runtime import Sidecar
from .group import cli, json_option


@cli.command()
@click.argument("sidecar")
@click.option("--layer", type=int, help="One layer in detail.")
@json_option
def inspect(sidecar: str, layer: int | None, as_json: bool) -> None:
    """Show what a sidecar (a file or a Hub repository) holds."""
    from ..report.inspect import describe, describe_layer, render, render_layer

    side = Sidecar.read(sidecar)
    if layer is None:
        found = describe(side)
        click.echo(json.dumps(found) if as_json else render(found))
    else:
        found = describe_layer(side, layer)
        click.echo(json.dumps(found) if as_json else render_layer(found))
