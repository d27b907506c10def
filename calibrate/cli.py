"""The `calibrate` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Console script. Without the extra that brings click, say which one to install."""
    try:
        import click  # noqa: F401
        import tqdm  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        print(f'Error: {error.name} is missing; pip install "longscan[calibrate]"', file=sys.stderr)
        raise SystemExit(1) from None
    from .commands import cli

    cli(prog_name="calibrate")
