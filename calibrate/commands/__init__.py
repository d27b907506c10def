"""The commands, a file each but for those that only look; importing this package registers them with the group."""

from . import evaluate, generate, harness, look, push, recipes, report, run
from .group import cli

__all__ = ["cli", "evaluate", "generate", "harness", "look", "push", "recipes", "report", "run"]
