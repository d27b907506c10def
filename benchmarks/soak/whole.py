"""Whole commands in processes that can be killed: a calibration of seconds, and `calibrate` forked with all imported.

A fork server imports this module once; what it forks starts with everything loaded and no thread running.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import datasets  # noqa: F401
import matplotlib.backends.backend_svg  # noqa: F401
import numba  # noqa: F401
import torch
import tqdm  # noqa: F401
import yaml  # noqa: F401
from shared import borrowed, checkpoints

import longscan.calibrate.report.page
import longscan.calibrate.run
import longscan.calibrate.share.push
import longscan.kernels.conv.cpu
import longscan.kernels.scan.cpu
import longscan.kernels.scores.cpu  # noqa: F401
from longscan.calibrate.commands import cli

write_run = borrowed("tests/tiny_run.py").write
HERE = str(Path(__file__).parent)
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["whole"])
if HERE not in os.environ.get("PYTHONPATH", "").split(os.pathsep):  # where the server looks: it gets no sys.path
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "NUMBA_THREADING_LAYER": "workqueue",
}  # survives a fork


def calibration(folder: Path) -> list[str]:
    """Arguments of a `calibrate run` of every stage, in seconds; but for --out and --workdir."""
    checkpoints.write_state_spaces(folder, checkpoints.random_tensors(M=16, n_layer=2, V=256, N=4))
    return write_run(folder, samples=2, windows=2, sweeps=2, train_length=128, more="")


def command(arguments: list[str], said: Path, rank: int = 0, size: int = 1, port: int = 0, clock: float = 0.0) -> None:
    """`calibrate` in this process, which it ends; what it says is added to `said`.

    clock: seconds by which the clock of the day is wrong, now ahead and now behind
    """
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if clock:
        right, calls = time.time, iter(range(1 << 62))
        time.time = lambda: right() + (clock if next(calls) % 2 else -clock)
    cli(arguments, prog_name="calibrate")


def start(arguments: list[str], said: Path, size: int = 1, clock: float = 0.0) -> list[BaseProcess]:
    """The processes of a command, as torchrun starts them where they are several."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = [FORKS.Process(target=command, args=(arguments, said, rank, size, port, clock)) for rank in range(size)]
    for one in made:
        one.start()
    return list(made)


def end(processes: list[BaseProcess], seconds: float = 120.0) -> list[int | None]:
    """Wait for them -> exit codes; None where one hung and had to be killed."""
    until, codes = time.monotonic() + seconds, []
    for one in processes:
        one.join(max(until - time.monotonic(), 0.0))
        codes.append(one.exitcode)
        if one.exitcode is None:
            one.kill()
            one.join()
    return codes
