"""The commands, one file each; importing this package registers them with the group."""

from . import diff, env, evaluate, generate, harness, inspect, push, recipes, report, run
from .group import cli

__all__ = ["cli", "diff", "env", "evaluate", "generate", "harness", "inspect", "push", "recipes", "report", "run"]
