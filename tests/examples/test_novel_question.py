"""The novel example, on a beginning short enough for the model to answer by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from longscan.runtime import load

from ..checkpoints import make_sidecar

SCRIPT = Path(__file__).parents[2] / "examples" / "novel_question.py"


def run(sidecar: Path, characters: int) -> list[str]:
    command = [sys.executable, str(SCRIPT), "--sidecar", str(sidecar), "--characters", str(characters)]
    done = subprocess.run([*command, "--depths", "0.1,0.6"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_keys_are_found_and_states_saved(tmp_path):
    sidecar = tmp_path / "demo.longscan.safetensors"
    make_sidecar(load("demo"), 256).write(sidecar)
    lines = run(sidecar, 100)
    assert sum(line.endswith("right") for line in lines) == 4  # both models, both keys: within the training length
    assert sum(line.endswith("saved state: the same") for line in lines) == 2
    longer = run(sidecar, 3000)  # far beyond it this sidecar, made at random, is no help
    assert sum(line.endswith("saved state: the same") for line in longer) == 2
    assert any(line.endswith("wrong") for line in longer)
