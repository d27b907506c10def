"""A calibration small enough to be run many times: a random checkpoint, part of a novel, all parts of the search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from longscan.calibrate.commands import cli

from ..checkpoints import random_tensors, write_state_spaces

DATA = Path(__file__).parents[1] / "data"
DEMO_TEXT = Path(__file__).parents[2] / "calibrate" / "demo" / "calibration.txt"
BYTES = Path(__file__).parents[2] / "runtime" / "demo" / "tokenizer.json"
RECIPE = """\
samples: 8
length_factors: [2, 4]
objective: mixed
measure: {windows: 12, batch_tokens: 256, sweep_windows: 4}
filter:
  theta: [1.0e-2]
  theta_quantiles: [0.5]
  mass: {law: [0.3, 0.8]}
  layers: search
  g_fit: sequential
decimate: {base_factors: [0.5], weights: [all, global]}
scale: {search: true, powers: [0.5, 1.0], top: [0.2]}
"""


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> list[str]:
    """Arguments of `calibrate` but for --out and --workdir."""
    folder = tmp_path_factory.mktemp("tiny-run")
    write_state_spaces(folder, random_tensors(M=16, n_layer=4, V=256, N=16), pickled=True)
    shutil.copyfile(BYTES, folder / "tokenizer.json")
    (folder / "novel.txt").write_text(DEMO_TEXT.read_text()[:40000])
    (folder / "tiny.yaml").write_text(RECIPE)
    given = {"--model": folder, "--texts": folder / "novel.txt", "--recipe": folder / "tiny.yaml", "--train-length": 64}
    return ["run", *(str(part) for pair in given.items() for part in pair)]


class Whole(NamedTuple):
    """What one uninterrupted run in one process leaves: what every other way of running it has to give, too."""

    data: bytes  # the sidecar's
    work: Path  # its --workdir; copy it before going on from it
    document: dict[str, Any]  # of --json


@pytest.fixture(scope="session")
def whole_run(tiny_run, tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole-run")
    out, work = folder / "a.safetensors", folder / "work"
    result = CliRunner().invoke(cli, [*tiny_run, "--out", str(out), "--workdir", str(work), "--json"])
    assert result.exit_code == 0, result.output
    return Whole(out.read_bytes(), work, json.loads(result.stdout))
