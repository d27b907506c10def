"""`calibrate env`."""

from __future__ import annotations

import json

import click

from .group import cli, json_option


@cli.command()
@json_option
def env(as_json: bool) -> None:
    """Versions, devices and backends: what a bug report needs."""
    from ..env import environment, render

    found = environment()
    click.echo(json.dumps(found) if as_json else render(found))
