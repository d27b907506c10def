"""An example run as from the command line, in this process: its imports are there already."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """run(name, argument, ...) -> the lines it prints."""
    monkeypatch.syspath_prepend(str(EXAMPLES))  # the scripts import each other by their bare names

    def lines(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return lines
