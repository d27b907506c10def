"""`calibrate inspect`, `diff` and `env`: commands that only look."""

from __future__ import annotations

import click

from ...runtime import Sidecar
from .group import cli, emit, json_option


@cli.command()
@click.argument("sidecar")
@click.option("--layer", type=int, help="One layer in detail.")
@json_option
def inspect(sidecar: str, layer: int | None, as_json: bool) -> None:
    """Show what a sidecar (a file or a Hub repository) holds."""
    from ..report.inspect import describe, describe_layer, render, render_layer

    side = Sidecar.read(sidecar)
    if layer is None:
        emit(describe(side), as_json, render)
    else:
        emit(describe_layer(side, layer), as_json, render_layer)


@cli.command()
@click.argument("a")
@click.argument("b")
@json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Compare two sidecars: plans, tables and settings.

    A and B are files or Hub repositories; user/name@revision is one of its commits.
    """
    from ..report.diff import compare, render

    emit(compare(Sidecar.read(a), Sidecar.read(b)), as_json, render)


@cli.command()
@json_option
def env(as_json: bool) -> None:
    """Versions, devices and backends: what a bug report needs."""
    from ..env import environment, render

    emit(environment(), as_json, render)
