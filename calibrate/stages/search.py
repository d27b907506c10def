"""Third stage: measurements -> the best filter, decimation, both and scale at each length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..search.recall import settle_objective
from ..search.scoring import Objective, Scoring
from ..search.search import LengthPicks, Search
from ..texts.passkey import Salt
from ..texts.prompts import PasskeyTrials, asked_windows
from ..work.journal import Journal
from .job import Job
from .measure import Measured
from .texts import Tokens


@dataclass(frozen=True)
class Found:
    """picks: an entry a length; scoring: what they were compared by; None where there was nothing to search."""

    measured: Measured
    picks: list[LengthPicks]
    scoring: Scoring | None
    record: dict[str, Any]


def search(job: Job, measured: Measured, journal: Journal) -> Found:
    """Compare candidates on held-out text. Raises UserError where it is too short."""
    if not job.searches:
        return Found(measured, [], None, measured.record)
    tokens, options = measured.tokens, job.options
    objective, answered = settle_objective(
        job.lm, tokens.held_out[0], job.L, options.objective, options.seed, job.batch_tokens, journal, job.processes
    )
    windows = {n: tokens.first(tokens.searched, job.searching(n)) for n in job.lengths}
    scoring = Scoring(
        job.lm, measured.tables, objective, *compared(job, tokens, windows, objective, options.seed), tokens.tail,
        job.batch_tokens, journal, job.processes, texts=len(tokens.held_out),
    )  # fmt: skip
    searching = Search(scoring, job.recipe, job.lengths, options.seed)
    picks = searching.run(set(job.methods))
    record = measured.record | {
        "decided_by": objective,
        "passkeys_at_train_length": answered,
        "fits": sorted(searching.fits, key=lambda fit: fit["length"]),
    }
    return Found(measured, picks, scoring, record)


def compared(
    job: Job, tokens: Tokens, windows: Mapping[int, Tensor], objective: Objective, seed: int
) -> tuple[dict[int, Tensor], dict[int, PasskeyTrials]]:
    """What candidates are compared on at each length: the last tokens of the windows given for it, as they are or with
    a key in them."""
    if objective == "perplexity":
        return {n: each[:, -n:] for n, each in windows.items()}, {}
    salt, texts = Salt(**job.recipe.recall.model_dump()), len(tokens.held_out)
    return {}, {n: asked_windows(job.lm, each, n, tokens.tail, texts, seed, salt) for n, each in windows.items()}
