"""Second stage: tokens -> what every layer does with them, and the tables that candidates are built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..measure.measuring import measured
from ..search.sequential import Sweeper
from ..search.tables import Tables
from ..texts.windows import longest_of
from ..work.journal import Journal
from .job import Job
from .published import published_table
from .texts import Tokens


@dataclass(frozen=True)
class Measured:
    """tables: of the measurements (none for --method none); sweeper: makes those of sequential fits."""

    tokens: Tokens
    tables: Tables
    sweeper: Sweeper
    record: dict[str, Any]


def measure(job: Job, tokens: Tokens, journal: Journal) -> Measured:
    """One pass over the windows of the training length, from the journal if it was made before."""
    layers, record = [], tokens.record
    if job.options.method != "none":
        layers = measured(job.lm, tokens.windows, job.batch_tokens, published_table(job), journal, job.processes)
        record = record | {"layers": [{"mean_distance": round(float(layer.reach().mean()), 3)} for layer in layers]}
    sweeper = Sweeper(
        job.lm, layers, tokens.fit, job.recipe.measure.sweep_windows * job.L, job.batch_tokens, job.options.seed,
        journal, job.processes,
    )  # fmt: skip
    return Measured(tokens, Tables(layers, job.L, sweeper, longest_of(tokens.fit)), sweeper, record)
