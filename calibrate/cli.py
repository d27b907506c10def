"""The `calibrate` command."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TextIO, cast

from .console import Careless


def main() -> None:
    """Console script. Without the extra that brings click, say which one to install."""
    try:
        for name in ("click", "pydantic", "tqdm", "yaml"):
            import_module(name)
    except ImportError as error:
        print(f'Error: {error.name} is missing; pip install "longscan[calibrate]"', file=sys.stderr)
        raise SystemExit(1) from None
    if sys.stderr is None:  # closed; print() would take None for standard output, where results go
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = cast(TextIO, Careless(sys.stderr))  # progress and logs that nobody can read end no run
    try:
        from .commands import cli
    except KeyboardInterrupt:  # torch takes seconds to import
        raise SystemExit(130) from None
    cli(prog_name="calibrate")
