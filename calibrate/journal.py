"""What a run has already paid for, one JSON line a score: an interrupted run goes on where it was.

Floats are written so that they read back to the same bits; a last line cut short by a crash is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .errors import UserError


class Journal:
    """Append-only record in `workdir`, valid for one identity (model, texts, recipe, seed). None keeps nothing."""

    def __init__(self, workdir: Path | None, identity: str, resume: bool) -> None:
        self._path = workdir / "journal.jsonl" if workdir else None
        self._known: dict[str, Any] = {}
        self.note = ""
        if self._path is None:
            return
        name = hashlib.sha256(identity.encode()).hexdigest()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text().splitlines(keepends=True) if resume and self._path.exists() else []
        except OSError as error:
            raise UserError(f"cannot use work folder {workdir}: {error.strerror}; give another --workdir") from error
        entries = [json.loads(line) for line in lines if line.endswith("\n") and _whole(line)]
        if entries and entries[0] == {"run": name}:
            self._known = {entry["key"]: entry["value"] for entry in entries[1:]}
            self.note = f"going on from {len(self._known)} scores in {self._path.name}"
            if len(entries) < len(lines):  # drop the torn end before appending
                self._rewrite(entries)
            return
        if entries:
            self.note = "the work folder belongs to other inputs: starting afresh"
        self._rewrite([{"run": name}])

    def get(self, key: str) -> Any | None:
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        self._known[key] = value
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps({"key": key, "value": value}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def _rewrite(self, entries: list[Any]) -> None:
        assert self._path is not None
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        os.replace(temporary, self._path)


def _whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
