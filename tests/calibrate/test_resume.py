"""kill -9 at any moment, run the same command again: it goes on, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

KILLS = 20
THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "workqueue"}  # survives a fork
# Forks a child for every attempt from one process that has imported everything, and kills it after a random time. The
# parent never computes, so no thread exists when it forks.
DRIVER = """
import json, os, random, signal, sys, time
import torch, numba, yaml, tqdm, datasets
torch.set_num_threads(1)
from longscan.calibrate.commands import cli
import longscan.calibrate.run, longscan.kernels.cpu

def run(arguments):
    child = os.fork()
    if child == 0:
        out = os.open(os.devnull, os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        cli(arguments, prog_name="calibrate")
        os._exit(0)
    return child

arguments, kills = json.loads(sys.argv[1]), int(sys.argv[2])
began = time.monotonic()
child = run([*arguments[0], "--fresh"])
assert os.waitpid(child, 0)[1] == 0
whole = time.monotonic() - began
draw, killed, ended = random.Random(0), 0, 0
while killed < kills:
    child = run(arguments[1])
    time.sleep(draw.uniform(0.02, 0.25) * whole)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        killed += 1
    else:  # it came to its end first: start over, so that every kill hits a running calibration
        assert status == 0
        ended += 1
        for name in os.listdir(arguments[2]):
            os.remove(os.path.join(arguments[2], name))
child = run(arguments[1])
assert os.waitpid(child, 0)[1] == 0
print(json.dumps({"killed": killed, "ended": ended, "seconds": whole}))
"""


def test_killed_twenty_times_it_ends_with_the_same_bytes(tiny_run, tmp_path):
    straight, resumed = tmp_path / "straight.safetensors", tmp_path / "resumed.safetensors"
    work, log = tmp_path / "work", tmp_path / "log"
    commands = [
        [*tiny_run, "--out", str(straight), "--workdir", str(tmp_path / "other")],
        [*tiny_run, "--out", str(resumed), "--workdir", str(work)],
        str(work),
    ]
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands), str(KILLS), str(log)],
        capture_output=True, text=True, env={**os.environ, **THREADS}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + log.read_text()
    assert json.loads(done.stdout)["killed"] == KILLS
    assert "going on from" in log.read_text()
    assert resumed.read_bytes() == straight.read_bytes()
    left = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".tmp")
    assert left == []  # nothing half-written beside the sidecar


def test_the_cost_is_that_of_the_whole_run_however_often_it_was_interrupted(tiny_run, tmp_path):
    def run() -> dict[str, Any]:
        out = str(tmp_path / "a.safetensors")
        command = [sys.executable, "-m", "longscan.calibrate", *tiny_run, "--out", out, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **THREADS}, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, again = run(), run()  # the second finds every score in the journal and makes few sweeps itself
    assert (again["cost"], again["tokens"]) == (first["cost"], first["tokens"])
    lines = Path(f"{tmp_path / 'a.safetensors'}.work", "journal.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("key", "").startswith("sweep ") for line in lines)  # there was one to forget


def test_other_inputs_start_afresh_and_say_so(tiny_run, tmp_path):
    def run(*more: str) -> str:
        command = [sys.executable, "-m", "longscan.calibrate", *tiny_run, "--out", str(tmp_path / "a.safetensors")]
        command += ["--lengths", "128", *more]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **THREADS}, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stderr

    work = Path(f"{tmp_path / 'a.safetensors'}.work")
    assert "afresh" not in run()
    assert "going on from" in run()
    (work / "left.part.safetensors").write_bytes(b"from another run")
    assert "starting afresh" in run("--seed", str(random.randint(1, 9)))
    assert not list(work.glob("*.part.safetensors"))
