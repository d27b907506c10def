"""The commands, one file each; importing this package registers them with the group."""

from . import evaluate, generate, inspect, run
from .group import cli

__all__ = ["cli", "evaluate", "generate", "inspect", "run"]
