"""The short examples, as a new user runs them: every way in gives the same answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from longscan.runtime import load

from ..checkpoints import make_sidecar

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_way_in_gives_one_answer(tmp_path):
    pytest.importorskip("transformers")
    sidecar = tmp_path / "demo.longscan.safetensors"
    make_sidecar(load("demo"), 256, share=20.0).write(sidecar)
    given = ("--sidecar", str(sidecar), "--characters", "1500")
    lines = run("load_sidecar.py", *given)
    assert [line.split()[0] for line in lines] == ["plain", "filtered"]
    assert lines[0][10:] != lines[1][10:]
    assert run("attach_transformers.py", *given) == lines
    assert run("attach_transformers.py", *given, "--pipeline") == lines
