"""Several processes share a run: the same sidecar, and a clear end when one of them is lost."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from longscan.calibrate.work.journal import Journal
from longscan.calibrate.work.processes import LOST, complain

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--master-port", "0"]


def start(ranks: int, arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", str(ranks), "-m", "longscan.calibrate", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_any_number_of_ranks_gives_the_same_bytes(tiny_run, whole_run, tmp_path):
    """Three here, one in `whole_run`; two where a run is taken up again below."""
    out = tmp_path / "shared.safetensors"
    process = start(3, [*tiny_run, "--out", str(out), "--json"])
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert out.read_bytes() == whole_run.data
    assert json.loads(stdout)["sidecar"] == str(out)  # exactly one document: rank 0 speaks


def peek(work: Path) -> list[str]:
    """Keys in the journal of a run that goes on; none while it writes. The lock is ignored."""
    try:
        with closing(sqlite3.connect(f"file:{work / 'journal.sqlite'}?immutable=1", uri=True)) as db:
            return [key for (key,) in db.execute("SELECT key FROM scores")]
    except sqlite3.Error:
        return []


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks through /proc")
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_rank_ends_the_run_with_one_clear_error(lost, tiny_run, whole_run, tmp_path):
    out, work = tmp_path / "shared.safetensors", tmp_path / "work"
    arguments = [*tiny_run, "--out", str(out), "--workdir", str(work)]
    process = start(2, arguments)
    while len(peek(work)) < 4:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(children(process.pid)[lost], signal.SIGKILL)
    began = time.monotonic()
    _, stderr = process.communicate(timeout=90)
    assert time.monotonic() - began < 60
    assert process.returncode != 0 and not out.exists()
    ours = [line for line in stderr.splitlines() if line.startswith("Error:")]
    assert ours == [f"Error: {LOST}"]
    if lost == 1:  # the journal is rank 0's
        return
    again = start(2, arguments)
    stderr = again.communicate(timeout=300)[1]
    assert again.returncode == 0 and "going on from" in stderr, stderr
    assert out.read_bytes() == whole_run.data


def test_a_work_folder_in_use_is_reported_once(tiny_run, tmp_path):
    with closing(Journal(tmp_path / "work", "another run", True)):
        process = start(2, [*tiny_run, "--out", str(tmp_path / "a.safetensors"), "--workdir", str(tmp_path / "work")])
        stderr = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and stderr.count("Error: work folder") == 1 and "in use by another run" in stderr


def test_a_wrong_input_is_reported_once(tiny_run, tmp_path):
    process = start(2, [*tiny_run, "--out", str(tmp_path / "a.safetensors"), "--lengths", "32"])
    stderr = process.communicate(timeout=120)[1]
    assert "terminate" not in stderr  # nor does a thread of torch's speak last
    assert process.returncode != 0 and stderr.count("Error: length 32 is not above the training length 64") == 1


def test_a_rank_that_waits_for_a_lost_gpu_still_says_so():
    """SIGTERM from torchrun, while the main thread never comes back to Python: as in a collective on a GPU."""
    script = """
import ctypes, os, signal
from longscan.calibrate.work.processes import _end_when_stopped
_end_when_stopped()
signal.siginterrupt(signal.SIGTERM, False)  # the read below goes on after a signal, as a GPU's driver does
print("waiting", flush=True)
ctypes.CDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
"""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    began = time.monotonic()
    process.terminate()
    stderr = process.communicate(timeout=60)[1]
    assert time.monotonic() - began < 10 and process.returncode == 1
    assert stderr == f"Error: {LOST}\n"


def test_markers_of_failed_runs_do_not_pile_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lives, gone = (tmp_path / f"longscan-failed-b-1-{pid}" for pid in (os.getpid(), ended.pid))
    lives.touch(), gone.touch()
    complain("first"), complain("second")
    assert capsys.readouterr().err == "Error: first\n"
    assert len(list(tmp_path.iterdir())) == 2 and lives.exists()
