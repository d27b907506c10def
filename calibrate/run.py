"""A calibration from its texts to its sidecar, stage by stage."""

from __future__ import annotations

import time
from contextlib import closing

from ..runtime.model import LM
from .recipe.recipe import Recipe
from .stages.decide import decide
from .stages.job import Job, Options
from .stages.measure import measure
from .stages.plan import Plan
from .stages.plan import plan as count
from .stages.resume import open_journal
from .stages.search import search
from .stages.texts import read
from .stages.write import Calibration, write
from .work.processes import ALONE, Processes


def plan(lm: LM, recipe: Recipe, options: Options) -> Plan:
    """What `calibrate` would read and take, without doing it. Raises UserError as it does."""
    job = Job.of(lm, recipe, options, ALONE)
    return count(job, read(job))


def calibrate(lm: LM, recipe: Recipe, options: Options, processes: Processes = ALONE) -> Calibration:
    """Calibrate a model. Raises UserError with the remedy where texts, lengths and model do not fit together."""
    began = time.monotonic()
    job = Job.of(lm, recipe, options, processes)
    tokens = read(job)
    with closing(open_journal(job, tokens)) as journal:  # and with it the work folder's lock
        measured = measure(job, tokens, journal)
        found = search(job, measured, journal)
        decided = decide(job, found)
        calibration = write(job, decided, time.monotonic() - began)
        journal.drop_tensors()  # which nothing goes on from any more
    return calibration
