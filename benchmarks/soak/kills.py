"""SIGKILL at random moments, and a disk that fills at each write in turn: what is there stays whole.

`state` is saved over and over and killed; `run` is killed and run again until it has its sidecar, alone and in three
processes, which must have the bytes of a run that nobody killed; `full` fails each write of a save in turn.
"""

from __future__ import annotations

import argparse
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from shared import checkpoints, keep

from longscan.runtime import load
from longscan.runtime.reading.state import State

IDS = torch.arange(40)[None]
RUN = ["-m", "longscan.calibrate", "run", "--model", "demo", "--lengths", "512", "--samples", "2"]


def _save_forever(states: list[State], path: Path) -> None:
    while True:
        for state in states:
            state.save(path)


def states(kills: int, draw: random.Random, folder: Path) -> dict[str, int]:
    """Kill a process that saves one state after another over the same file."""
    lm, path = (
        load(checkpoints.write_state_spaces(folder / "tiny", checkpoints.random_tensors())),
        folder / "s" / "state",
    )
    path.parent.mkdir()
    two = [lm.prefill(IDS[:, :n]).state for n in (20, 40)]  # made here: a forked process cannot compute
    two[0].save(path)
    broken = left = 0
    for _ in range(kills):
        child = multiprocessing.get_context("fork").Process(target=_save_forever, args=(two, path))
        child.start()
        time.sleep(draw.uniform(0.01, 0.1))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        try:
            broken += int(lm.load_state(path).length) not in (20, 40)
        except ValueError:
            broken += 1
        left = max(left, len(list(path.parent.iterdir())) - 1)
    return {"kills": kills, "broken": broken, "temporary_files_at_most": left}


def full(folder: Path) -> dict[str, int]:
    """Every call that can fail for want of space, failed in turn: the old file stays, and nothing beside it."""
    lm, path = (
        load(checkpoints.write_state_spaces(folder / "tiny2", checkpoints.random_tensors())),
        folder / "f" / "state",
    )
    path.parent.mkdir()
    lm.prefill(IDS).state.save(path)
    before, state, broken = path.read_bytes(), lm.prefill(IDS[:, :9]).state, 0
    calls = ("tempfile.mkstemp", "os.close", "pathlib.Path.write_bytes", "os.fsync", "os.chmod", "os.replace")
    for call in calls:
        with mock.patch(call, side_effect=OSError(errno.ENOSPC, "No space left on device")):
            try:
                state.save(path)
                broken += 1
            except OSError as error:
                broken += error.errno != errno.ENOSPC or error.filename != str(path)
        broken += path.read_bytes() != before or len(list(path.parent.iterdir())) > 1
    return {"failed_calls": len(calls), "broken": broken}


def _command(processes: int, out: Path) -> list[str]:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *start, *RUN, "--out", str(out), "--workdir", str(out.parent / f"{out.name}.work")]


def runs(
    kills: int, processes: int, draw: random.Random, folder: Path, wanted: bytes, seconds: float
) -> dict[str, Any]:
    """Kill the whole run at random moments of its `seconds`, then let it end; begin again until all kills are spent."""
    spent, ended, differ, left = 0, 0, 0, 0
    out = folder / f"killed{processes}.safetensors"
    while spent < kills:
        running = subprocess.Popen(
            _command(processes, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            running.wait(draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            spent += 1
            differ += out.exists()  # a file before its time
            continue
        ended += 1
        differ += running.returncode != 0 or out.read_bytes() != wanted
        out.unlink(missing_ok=True)
    done = subprocess.run(_command(processes, out), capture_output=True)
    differ += done.returncode != 0 or out.read_bytes() != wanted
    left = len(
        [path for path in folder.rglob("*.tmp") if "killed" in path.name or path.parent.name.startswith("killed")]
    )
    return {
        "processes": processes,
        "kills": spent,
        "ended_by_themselves": ended + 1,
        "differ": differ,
        "temporary_files": left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500, help="kills: nine in ten of a state, the others of runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder, of_runs = Path(name), options.cases // 10
        result: dict[str, Any] = {"full": full(folder), "state": states(options.cases - of_runs, draw, folder)}
        print(result, flush=True)
        began = time.monotonic()
        subprocess.run(_command(1, folder / "whole.safetensors"), check=True, stdout=subprocess.DEVNULL)
        seconds, wanted = time.monotonic() - began, (folder / "whole.safetensors").read_bytes()
        result["runs"] = []
        for processes, kills in ((1, of_runs - of_runs // 3), (3, of_runs // 3)):
            result["runs"].append(runs(kills, processes, draw, folder, wanted, seconds))
            print(result["runs"][-1], flush=True)
    keep(options.out, seed=options.seed, **result)
    if any(one.get("broken") or one.get("differ") for one in (result["full"], result["state"], *result["runs"])):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
