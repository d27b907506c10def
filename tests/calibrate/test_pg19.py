"""benchmarks/pg19.py on a local folder of books: the published protocol, and the published rows beside ours."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longscan.runtime import load

from ..checkpoints import make_sidecar, random_tensors, write_state_spaces
from .conftest import DATA, DEMO_TEXT

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pg19.py"


def run(*arguments: object) -> str:
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    text = DEMO_TEXT.read_text()
    (folder / "one.txt").write_text(text[:30000])
    (folder / "two.txt").write_text(text[30000:50000])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mamba-1.4b"  # a name with published rows
    write_state_spaces(folder, random_tensors(M=16, n_layer=3, V=50280, N=16), vocab_size=50277, train_length=64)
    (folder / "tokenizer.json").write_bytes(gzip.decompress((DATA / "gpt-neox-20b.json.gz").read_bytes()))
    return folder


def test_ours_beside_the_published_rows(books, model, tmp_path):
    sidecar = tmp_path / "a.st"
    make_sidecar(load(model), 64).write(sidecar)
    out = tmp_path / "out"
    given = ("--model", model, "--sidecar", sidecar, "--texts", books, "--out", out)
    printed = run(*given, "--lengths", "500,4000", "--methods", "none,filter", "--windows", 3)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert rows[0] == ["", "500", "4,000"]
    ours = {row[0]: row[1:] for row in rows[2:]}
    assert ours["published: plain"] == ["", "10.31"] and ours["published: LongMamba"] == ["", "10.31"]
    document = json.loads((out / "mamba-1.4b-pg19.json").read_text())
    assert document["protocol"] == "pg19"
    values = {(row["method"], row["length"]): row for row in document["rows"]}
    assert ours["ours: filter"] == [f"{values['filter', n]['value']:.2f}" for n in (500, 4000)]


def test_without_a_sidecar_the_model_is_calibrated_first(books, model, tmp_path):
    given = ("--model", model, "--texts", books, "--calibration-texts", books, "--out", tmp_path)
    printed = run(
        *given, "--lengths", "100", "--windows", "2", "--methods", "none", "--run", "--lengths 128 --method none"
    )
    assert "$ calibrate run" in printed and "ours: none" in printed
    assert (tmp_path / "mamba-1.4b.longscan.safetensors").exists()
