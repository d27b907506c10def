"""The journal of a run: what an earlier, interrupted one of the same identity has already paid for."""

from __future__ import annotations

from typing import Any

from ...runtime.checkpoint.weight_files import weight_files
from ...runtime.model import LM
from ...runtime.sidecar.sidecar import canonical
from ..console import say
from ..recipe.recipe import to_json
from ..sidecars import producer_version
from ..work.journal import Journal
from .job import Job
from .texts import Tokens


def open_journal(job: Job, tokens: Tokens) -> Journal:
    """The work folder's journal, to be closed after use. Raises UserError if another run uses the folder."""
    identity = canonical([*_identity(job.lm), tokens.record, to_json(job.recipe), job.L])
    journal = Journal(job.options.workdir, identity, job.options.resume, job.processes)
    if journal.note:
        say(journal.note)
    return journal


def _identity(lm: LM) -> list[Any]:
    """Which model, read by which version: the fingerprint does not cover all of it, so its files are looked at."""
    others = [path for name in ("config.json", "tokenizer.json") if (path := lm.source.find(name))]
    files = [path.stat() for path in [*weight_files(lm.source.folder, lm.source.name)[0], *others]]
    about = [[file.st_size, file.st_mtime_ns] for file in files]
    return [producer_version(), lm.source.name, lm.source.revision, lm.fingerprint, about]
