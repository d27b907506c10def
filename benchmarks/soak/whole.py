"""Whole commands in processes that can be killed: a calibration of seconds, and `calibrate` forked with all imported.

A fork server imports this module once; what it forks starts with everything loaded and no thread running.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
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
from shared import BYTES, ROOT, checkpoints

import longscan.calibrate.report.page
import longscan.calibrate.run
import longscan.calibrate.share.push
import longscan.kernels.conv.cpu
import longscan.kernels.scan.cpu
import longscan.kernels.scores.cpu  # noqa: F401
from longscan.calibrate.commands import cli

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
RECIPE = """\
samples: 2
length_factors: [2, 4]
objective: mixed
measure: {windows: 2, batch_tokens: 256, sweep_windows: 2}
filter:
  theta: [1.0e-2]
  theta_quantiles: [0.5]
  mass: {law: [0.3, 0.8]}
  layers: search
  g_fit: sequential
decimate: {base_factors: [0.5], weights: [all, global]}
"""


def calibration(folder: Path) -> list[str]:
    """Arguments of a `calibrate run` of every stage, in seconds; but for --out and --workdir."""
    checkpoints.write_state_spaces(folder, checkpoints.random_tensors(M=16, n_layer=2, V=256, N=4))
    shutil.copyfile(BYTES, folder / "tokenizer.json")
    text = (ROOT / "calibrate" / "demo" / "calibration.txt").read_text(encoding="utf-8")
    (folder / "novel.txt").write_text(text[:40000], encoding="utf-8")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    given = {
        "--model": folder,
        "--texts": folder / "novel.txt",
        "--recipe": folder / "tiny.yaml",
        "--train-length": 128,
    }
    return ["run", *(str(part) for pair in given.items() for part in pair)]


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
