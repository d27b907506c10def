"""Third stage: measurements -> the best filter, decimation, both and scale at each length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..search.recall import settle_objective
from ..search.scoring import Scoring
from ..search.search import LengthPicks, Search, plain_scores
from ..search.tasks import DEPTHS, PasskeyTrials, passkey_trials
from ..texts.passkey import Salt
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
    trials = {}
    if objective != "perplexity":
        trials = {n: passkeys(job, tokens, n, options.samples, options.seed) for n in job.lengths}
    scoring = Scoring(
        job.lm, measured.tables, objective, tokens.searched, trials, tokens.tail, job.batch_tokens, journal,
        job.processes, texts=len(tokens.held_out),
    )  # fmt: skip
    plain_scores(scoring, job.lengths)
    searching = Search(scoring, job.recipe, job.lengths, options.seed)
    picks = searching.run(set(job.methods))
    record = measured.record | {
        "decided_by": objective,
        "passkeys_at_train_length": answered,
        "fits": sorted(searching.fits, key=lambda fit: fit["length"]),
    }
    return Found(measured, picks, scoring, record)


def passkeys(job: Job, tokens: Tokens, length: int, samples: int, seed: int) -> PasskeyTrials:
    """Trials at one length, as many as suit `samples` windows, equally many at each depth; some haystacks salted.

    An answer says less than a window's loss, hence five of them to two windows.
    """
    depths = [DEPTHS[i % len(DEPTHS)] for i in range(len(DEPTHS) * -(-samples // 2))]
    salt = Salt(**job.recipe.recall.model_dump())
    return passkey_trials(job.lm, tokens.held_out[0], length, depths, "calibrate", seed, salt, tokens.held_out[1:])
