"""What runs have already paid for: scores in a table, tensors in a file each; an interrupted run goes on there.

One SQLite file holds the scores of every run that used the folder, each under its run's identity. Whoever has it open
holds its lock, which ends with the process, however that ends; a second run is refused. Floats read back to the same
bits: a score or a tensor that was damaged since is paid for again. One process keeps the journal; the others are told
what it knew.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...runtime.errors import os_reason
from ...runtime.files import read_sealed, save_sealed
from ..errors import UserError
from .processes import ALONE, Processes

NAME = "journal.sqlite"
_DAMAGE = (sqlite3.Error, UnicodeDecodeError)  # the latter where SQLite's own message quotes the damaged file
_SECONDS = 1.0  # to wait for a process that is about to end


class Journal:
    """Record in `workdir` of the run of one identity (model, texts, recipe, seed). None keeps nothing.

    Raises UserError, on every rank, if another run uses the folder or it cannot be written. Close it after use.
    """

    def __init__(self, workdir: Path | None, identity: str, resume: bool, processes: Processes = ALONE) -> None:
        self._folder = workdir if processes.rank == 0 else None
        self._run = hashlib.sha256(identity.encode()).hexdigest()
        self._known: dict[str, Any] = {}
        self._world = processes
        self._db: sqlite3.Connection | None = None
        self.note = ""
        problem = self._open(self._folder, resume) if self._folder else ""
        if problem := processes.agree(problem):
            self.close()
            raise UserError(problem)
        self._known = processes.agree(self._known)

    def _open(self, folder: Path, resume: bool) -> str:
        """Lock the folder and read what it knows of this run; returns what is wrong with it."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            db = self._db = sqlite3.connect(folder / NAME, timeout=_SECONDS, isolation_level=None)
            db.execute("PRAGMA locking_mode = EXCLUSIVE")  # a lock that is taken is kept as long as this is open
            db.execute("BEGIN EXCLUSIVE")
            db.execute("CREATE TABLE IF NOT EXISTS scores (run TEXT, key TEXT, value TEXT, PRIMARY KEY (run, key))")
            # Always a write: SQLite opens a file that it may only read without a word, and says so at the first score.
            db.execute("DELETE FROM scores WHERE run = ? AND ?", [self._run, not resume])
            if not resume:
                self.drop_tensors()
            rows = db.execute("SELECT key, value FROM scores WHERE run = ? ORDER BY rowid", [self._run])
            self._known = {key: json.loads(value[_SEAL:]) for key, value in rows if _whole(key, value)}
            others = db.execute("SELECT 1 FROM scores WHERE run != ?", [self._run]).fetchone()
            db.execute("COMMIT")
            for old in folder.glob(".*.part.safetensors.*.tmp"):  # half-written, by a run that is no more
                old.unlink()
        except _DAMAGE as error:
            if "locked" in str(error):
                return (  # SQLite says the same where the file system has no locks
                    f"work folder {folder} is in use by another run, or lies where files cannot be locked; "
                    "wait for that run's end, or give another --workdir"
                )
            return f"cannot use {NAME} in {folder} ({error}); give another --workdir, on a local disk"
        except OSError as error:
            return f"cannot use work folder {folder}: {os_reason(error)}, or give another --workdir"
        if self._known:
            self.note = f"going on from {len(self._known)} scores in {NAME}"
        elif others:
            self.note = "the work folder knows other runs, which are kept, but not this one: starting afresh"
        return ""

    def close(self) -> None:
        """Let other runs use the folder."""
        if self._db:
            self._db.close()
            self._db = None

    def get(self, key: str) -> Any | None:
        return self._known.get(key)

    def all(self, start: str) -> list[Any]:
        """The values of all keys that begin so."""
        return [value for key, value in self._known.items() if key.startswith(start)]

    def put(self, key: str, value: Any) -> None:
        """On disk when this returns. Raises UserError if it cannot be written."""
        self._known[key] = value
        if self._db:
            try:
                row = [self._run, key, _sealed(key, json.dumps(value))]
                self._db.execute("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", row)
            except _DAMAGE as error:
                remedy = "free some space" if "full" in str(error) else "check the work folder"
                raise UserError(f"cannot write to {NAME} ({error}); {remedy} and run the same again") from error

    def tensors(self, key: str) -> dict[str, Tensor] | None:
        """Tensors put under this key by an earlier run; None on every rank if the first has none."""
        found = None
        if self._folder and self._file(self._folder, key).exists():
            try:
                found, _ = read_sealed(self._file(self._folder, key))
            except (ValueError, OSError):  # damaged: pay again
                found = None
        if not self._world.agree(found is not None):
            return None
        shapes = self._world.agree({name: (t.shape, t.dtype) for name, t in found.items()} if found else None)
        return {name: self._world.spread(found[name] if found else None, *shapes[name]) for name in sorted(shapes)}

    def put_tensors(self, key: str, values: Mapping[str, Tensor]) -> None:
        if self._folder:
            save_sealed(self._file(self._folder, key), values, {"run": self._run})

    def drop_tensors(self) -> None:
        """Forget this run's tensors, which may be large; the scores are kept."""
        if self._folder:
            for old in self._folder.glob(f"{self._run[:16]}-*.part.safetensors"):
                old.unlink()

    def _file(self, folder: Path, key: str) -> Path:
        return folder / f"{self._run[:16]}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.part.safetensors"


_SEAL = 16  # hex digits in front of a score


def _sealed(key: str, text: str) -> str:
    return hashlib.sha256(f"{key} {text}".encode()).hexdigest()[:_SEAL] + text


def _whole(key: object, value: object) -> bool:
    """Whether a row is one that was put here."""
    return isinstance(key, str) and isinstance(value, str) and value == _sealed(key, value[_SEAL:])
