"""What the benchmarks share: fresh processes, their peak memory, and results kept with the machine that gave them."""

from __future__ import annotations

import datetime
import json
import os
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from longscan.calibrate.env import environment


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's peak, too
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def fresh(script: str, *arguments: object, threads: int | None = None) -> dict[str, Any]:
    """Run `script` in a process of its own and return the JSON line that it ends with."""
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, **limits})
    if done.returncode:
        raise SystemExit(f"Error: {shlex.join(command)} ended with status {done.returncode}; see its message above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine() -> dict[str, Any]:
    """The processor or GPU, and the versions that matter."""
    found = environment()
    packages = {name: found["packages"][name] for name in ("longscan", "torch", "numba", "triton", "transformers")}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": found["cpu"]["name"], "cores": os.cpu_count(), "gpu": gpu, "packages": packages}


def keep(path: Path | None, **results: Any) -> None:
    """Write results as JSON beside the command, the day and the machine; nothing without a path."""
    if path is None:
        return
    command = shlex.join(["python", *sys.argv])
    document = {"command": command, "date": datetime.date.today().isoformat(), "machine": machine(), **results}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
