"""kill -9 at any moment, run the same command again: it goes on, and ends with the same bytes."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.calibrate.errors import UserError
from longscan.calibrate.work.journal import Journal
from longscan.runtime import Sidecar

KILLS = 20
THREADS = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "workqueue"}  # survives a fork
# Forks a child for every attempt from one process that has imported everything, and kills it: the first ones while they
# measure, the others once they have kept something that no attempt before them had. The parent never computes, so no
# thread exists when it forks.
DRIVER = """
import json, os, random, signal, sqlite3, sys, time
import torch, numba, yaml, tqdm, datasets
torch.set_num_threads(1)
from longscan.calibrate.commands import cli
from longscan.calibrate.work.journal import Journal
import longscan.calibrate.run, longscan.kernels.conv.cpu, longscan.kernels.scan.cpu, longscan.kernels.scores.cpu

def telling(method):
    def told(self, key, value):
        method(self, key, value)
        os.write(tells, key.lstrip('["')[:2].encode())
    return told

Journal.put, Journal.put_tensors = telling(Journal.put), telling(Journal.put_tensors)

def run(arguments):
    child = os.fork()
    if child == 0:
        out = os.open(os.devnull, os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        cli(arguments, prog_name="calibrate")
        os._exit(0)
    return child

def rest():
    os.set_blocking(hears, False)
    try:
        return os.read(hears, 1 << 16)
    except BlockingIOError:
        return b""
    finally:
        os.set_blocking(hears, True)

arguments, kills = json.loads(sys.argv[1]), int(sys.argv[2])
hears, tells = os.pipe()
began = time.monotonic()
child = run([*arguments[0], "--fresh"])
first = os.read(hears, 2)
measuring = time.monotonic() - began
assert os.waitpid(child, 0)[1] == 0
whole = len(first + rest()) // 2  # what a run keeps: scores and tensors
pause = (time.monotonic() - began - measuring) / whole
draw, told, phases, scores = random.Random(0), 0, [], []
for kill in range(kills):
    child, heard = run(arguments[1]), b""
    if kill < 2:
        time.sleep(draw.uniform(0.1, 0.5) * measuring)
    else:
        wanted = max(1, kill * whole // kills - told)
        while len(heard) < 2 * wanted:
            heard += os.read(hears, 2 * wanted - len(heard))
        time.sleep(draw.uniform(0, pause))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    heard += rest()
    told += len(heard) // 2
    phases.append(heard[-2:].decode())
    if told:
        db = sqlite3.connect(os.path.join(arguments[2], "journal.sqlite"))
        scores.append(db.execute("SELECT count(*) FROM scores").fetchone()[0])
assert os.waitpid(run(arguments[1]), 0)[1] == 0
told += len(rest()) // 2
print(json.dumps({"whole": whole, "told": told, "phases": phases, "scores": scores}))
"""


def test_killed_twenty_times_it_goes_on_and_ends_with_the_same_bytes(tiny_run, tmp_path):
    straight, resumed = tmp_path / "straight.safetensors", tmp_path / "resumed.safetensors"
    work, log = tmp_path / "work", tmp_path / "log"
    commands = [
        [*tiny_run, "--out", str(straight), "--workdir", str(tmp_path / "other")],
        [*tiny_run, "--out", str(resumed), "--workdir", str(work)],
        str(work),
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands), str(KILLS), str(log)],
        capture_output=True, text=True, env={**os.environ, **THREADS}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + log.read_text()
    found = json.loads(done.stdout)
    assert set(found["phases"]) == {"", "se", "sw", "ju"}, found  # measuring, search, sweeps of a fit, judging
    went_on = [int(n) for n in re.findall(r"going on from (\d+) scores", log.read_text())]
    assert went_on == found["scores"] and len(went_on) == KILLS - 2
    assert found["told"] <= found["whole"] + KILLS  # a kill costs what was being made, and no more
    assert resumed.read_bytes() == straight.read_bytes()
    left = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".tmp")
    assert left == []  # nothing half-written beside the sidecar


def test_the_cost_is_that_of_the_whole_run_however_often_it_was_interrupted(tiny_run, whole_run, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(whole_run.work, work)
    with closing(sqlite3.connect(work / "journal.sqlite")) as db:
        assert db.execute("SELECT 1 FROM scores WHERE key LIKE 'sweep %'").fetchone()  # there is one to forget
    # Every score is found in the journal, and few sweeps are made again.
    result = CliRunner().invoke(cli, [*tiny_run, "--out", str(tmp_path / "a.st"), "--workdir", str(work), "--json"])
    assert result.exit_code == 0 and "going on from" in result.stderr, result.stderr
    again = json.loads(result.stdout)
    assert [again[key] for key in ("cost", "tokens")] == [whole_run.document[key] for key in ("cost", "tokens")]


def run(arguments: list[str], *more: str | Path) -> str:
    """`calibrate` in this process -> stderr; the exception if it did not come to its end."""
    result = CliRunner().invoke(cli, [*arguments, "--lengths", "128", "--method", "filter", *map(str, more)])
    if result.exception is not None and not (isinstance(result.exception, SystemExit) and not result.exit_code):
        raise result.exception
    return result.stderr


class Killed(BaseException):
    pass


def test_two_seeds_in_one_workdir_resume_each_their_own_scores(tiny_run, tmp_path, monkeypatch):
    whole, work = {}, tmp_path / "work"
    for seed in ("0", "1"):
        whole[seed] = tmp_path / f"whole{seed}.safetensors"
        run(tiny_run, "--seed", seed, "--out", whole[seed], "--workdir", tmp_path / f"other{seed}")
    put, left = Journal.put, [0]

    def counted(self, key, value):
        if not left[0]:
            raise Killed
        left[0] -= 1
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", counted)
    for seed, scores in (("0", 5), ("1", 7)):
        left[0] = scores
        with pytest.raises(Killed):
            run(tiny_run, "--seed", seed, "--out", tmp_path / "x.safetensors", "--workdir", work)
    assert len(list(work.glob("*.part.safetensors"))) > 1  # both runs' tensors
    left[0] = 10**6
    for seed, scores in (("1", 7), ("0", 5)):
        out = tmp_path / f"resumed{seed}.safetensors"
        said = run(tiny_run, "--seed", seed, "--out", out, "--workdir", work)
        assert f"going on from {scores} scores" in said
        assert out.read_bytes() == whole[seed].read_bytes()
        assert json.loads(Sidecar.read(out).metadata["calibration"])["seed"] == int(seed)
    assert not list(work.glob("*.part.safetensors"))
    said = run(tiny_run, "--seed", "0", "--out", tmp_path / "x.safetensors", "--workdir", work, "--fresh")
    assert "starting afresh" in said and "going on" not in said


def test_another_model_of_the_same_fingerprint_starts_afresh(tiny_run, tmp_path):
    """A fine-tuned copy keeps A_log and the bias of delta, which is all that the fingerprint covers."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_run[tiny_run.index("--model") + 1], folder)
    other = ["run", "--model", str(folder), *tiny_run[3:]]
    work = ("--workdir", tmp_path / "work", "--out", tmp_path / "x.safetensors")
    assert "going on" not in run(other, *work)
    assert "going on" in run(other, *work)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights["backbone.layers.0.mixer.out_proj.weight"] += 1
    torch.save(weights, folder / "pytorch_model.bin")
    assert "starting afresh" in run(other, *work)


def test_what_was_damaged_in_a_work_folder_is_paid_for_again_or_refused(tmp_path):
    kept = {"0": torch.rand(4)}
    with closing(Journal(tmp_path, "run", True)) as journal:
        journal.put("a", 0.25)
        journal.put("b", 0.5)
        journal.put_tensors("t", kept)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as db:
        db.execute("UPDATE scores SET value = replace(value, '0.25', '0.75')")
        db.execute("INSERT INTO scores SELECT run, 'c', NULL FROM scores WHERE key = 'a'")
        db.commit()
    [part] = tmp_path.glob("*.part.safetensors")
    part.write_bytes(part.read_bytes()[:-1] + b"\1")
    with closing(Journal(tmp_path, "run", True)) as journal:
        assert [journal.get(key) for key in "abc"] == [None, 0.5, None] and journal.tensors("t") is None
    whole = (tmp_path / "journal.sqlite").read_bytes()
    (tmp_path / "journal.sqlite").write_bytes(whole.replace(b"CREATE TABLE scores", b"CREATE TABLE \xffcores"))
    for _ in range(2):  # nor is the folder left locked by the first
        with pytest.raises(UserError, match=r"cannot use journal.sqlite .*; give another --workdir"):
            Journal(tmp_path, "run", True)


def _hold(folder: Path, held: Connection) -> None:
    journal = Journal(folder, "first", True)
    journal.put("a", 0.1)
    held.send(True)
    time.sleep(600)


def test_a_workdir_in_use_is_refused_and_one_whose_run_was_killed_is_not(tmp_path):
    forked = multiprocessing.get_context("fork")
    for _ in range(2):  # a new folder, then one that exists
        here, there = forked.Pipe()
        holder = forked.Process(target=_hold, args=(tmp_path, there))
        holder.start()
        assert here.poll(60) and here.recv()
        for identity in ("first", "second"):
            with pytest.raises(UserError, match=r"in use by another run, .*; wait .* or give another --workdir"):
                Journal(tmp_path, identity, True)
        holder.kill()
        holder.join()
        with closing(Journal(tmp_path, "first", True)) as journal:
            assert journal.get("a") == 0.1
        with closing(Journal(tmp_path, "second", True)) as journal:
            assert journal.get("a") is None and "other runs, which are kept" in journal.note
        with closing(Journal(tmp_path, "first", False)) as journal:
            assert journal.get("a") is None


def test_values_read_back_to_the_same_bits_and_a_key_twice_keeps_the_last(tmp_path):
    values = [0.1, 1e-308, 5e-324, math.pi, -0.0, math.inf]
    with closing(Journal(tmp_path, "a", True)) as journal:
        journal.put("x", [1.0])
        journal.put("x", values)
    with closing(Journal(tmp_path, "a", True)) as journal:
        assert list(map(float.hex, journal.get("x"))) == list(map(float.hex, values))


def test_a_file_that_is_no_journal_is_one_clear_line(tmp_path):
    (tmp_path / "journal.sqlite").write_text("not a database, but some text that is long enough to be taken for one")
    with pytest.raises(UserError, match=r"cannot use journal.sqlite .*not a database"):
        Journal(tmp_path, "a", True)


def test_a_journal_that_can_only_be_read_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    Journal(tmp_path, "a", True).close()
    opened = sqlite3.connect
    monkeypatch.setattr(  # as SQLite does by itself on a read-only file system, which permissions are not to root
        "sqlite3.connect", lambda path, **more: opened(f"file:{path}?mode=ro", uri=True, **more)
    )
    with pytest.raises(UserError, match=r"cannot use journal.sqlite .*readonly database\); give another --workdir"):
        Journal(tmp_path, "a", True)


def test_a_full_disk_is_one_clear_line(tmp_path):
    with closing(Journal(tmp_path, "a", True)) as journal:
        assert journal._db is not None
        journal._db.execute("PRAGMA max_page_count = 4")
        with pytest.raises(UserError, match=r"cannot write to journal.sqlite \(database or disk is full\); free"):
            journal.put("x", "y" * 100_000)
