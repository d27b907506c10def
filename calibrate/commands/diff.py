"""`calibrate diff`."""

from __future__ import annotations

import json

import click

from ...runtime import Sidecar
from .group import cli, json_option


@cli.command()
@click.argument("a")
@click.argument("b")
@json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Compare two sidecars: plans, tables and settings.

    A and B are files or Hub repositories; user/name@revision is one of its commits.
    """
    from ..report.diff import compare, render

    found = compare(Sidecar.read(a), Sidecar.read(b))
    click.echo(json.dumps(found) if as_json else render(found))
