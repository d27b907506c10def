"""One small calibration, run once for all tests that look at what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner

from longscan.calibrate.commands import cli

from ..checkpoints import random_tensors, write_state_spaces
from ..tiny_run import DEMO_TEXT as DEMO_TEXT
from ..tiny_run import write as write_run

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> list[str]:
    """Arguments of `calibrate` but for --out and --workdir."""
    folder = tmp_path_factory.mktemp("tiny-run")
    write_state_spaces(folder, random_tensors(M=16, n_layer=4, V=256, N=16), pickled=True)
    return write_run(folder)


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
