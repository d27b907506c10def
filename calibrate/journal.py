"""What a run has already paid for: scores, one JSON line each, and tensors, one file each.

An interrupted run goes on there. Floats are written so that they read back to the same bits; a last line cut short by a
crash is ignored, and tensors are renamed into place. One process keeps the journal; the others are told what it knew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..runtime.files import save_tensors
from .errors import UserError
from .world import ALONE, World


class Journal:
    """Append-only record in `workdir`, valid for one identity (model, texts, recipe, seed). None keeps nothing."""

    def __init__(self, workdir: Path | None, identity: str, resume: bool, world: World = ALONE) -> None:
        self._path = workdir / "journal.jsonl" if workdir and world.rank == 0 else None
        self._run = hashlib.sha256(identity.encode()).hexdigest()
        self._known: dict[str, Any] = {}
        self._world = world
        self.note = ""
        if self._path:
            try:
                self._open(self._path, resume)
            except OSError as error:
                raise UserError(
                    f"cannot use work folder {workdir}: {error.strerror}; give another --workdir"
                ) from error
        self._known = world.agree(self._known)

    def _open(self, path: Path, resume: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines(keepends=True) if resume and path.exists() else []
        entries = [json.loads(line) for line in lines if line.endswith("\n") and _whole(line)]
        if entries and entries[0] == {"run": self._run}:
            self._known = {entry["key"]: entry["value"] for entry in entries[1:]}
            self.note = f"going on from {len(self._known)} scores in {path.name}"
            if len(entries) < len(lines):  # drop the torn end before appending
                _rewrite(path, entries)
            return
        if entries:
            self.note = "the work folder belongs to other inputs: starting afresh"
        for old in (*path.parent.glob("*.part.safetensors"), *path.parent.glob(".*.tmp")):
            old.unlink()
        _rewrite(path, [{"run": self._run}])

    def get(self, key: str) -> Any | None:
        return self._known.get(key)

    def all(self, start: str) -> list[Any]:
        """The values of all keys that begin so."""
        return [value for key, value in self._known.items() if key.startswith(start)]

    def put(self, key: str, value: Any) -> None:
        self._known[key] = value
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def tensors(self, key: str) -> dict[str, Tensor] | None:
        """Tensors put under this key by an earlier run; None on every rank if the first has none."""
        found = None
        if self._path and self._file(key).exists():
            try:
                found = load_file(self._file(key))
            except (SafetensorError, OSError):  # not ours, or damaged: pay again
                found = None
        if not self._world.agree(found is not None):
            return None
        shapes = self._world.agree({name: (t.shape, t.dtype) for name, t in found.items()} if found else None)
        return {name: self._world.spread(found[name] if found else None, *shapes[name]) for name in sorted(shapes)}

    def put_tensors(self, key: str, values: Mapping[str, Tensor]) -> None:
        if self._path:
            save_tensors(self._file(key), values, {"run": self._run})

    def finish(self) -> None:
        """The sidecar is safe: drop the tensors, which may be large, and keep the scores."""
        if self._path:
            for old in self._path.parent.glob("*.part.safetensors"):
                old.unlink()

    def _file(self, key: str) -> Path:
        assert self._path is not None
        name = hashlib.sha256(f"{self._run} {key}".encode()).hexdigest()[:24]
        return self._path.with_name(f"{name}.part.safetensors")


def _rewrite(path: Path, entries: list[Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    os.replace(temporary, path)


def _whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
