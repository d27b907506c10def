"""Fourth stage: what the search found -> a method for each length, by fresh text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...runtime.sidecar.sidecar import Band
from ..console import progress
from ..search.candidates import Candidate
from ..search.choice import bands, choose, stored, stretch
from ..search.scoring import Scoring
from .job import Job
from .published import unsearched_band
from .search import Found, compared


@dataclass(frozen=True)
class Decided:
    """bands: entries and tensors; scores: the comparison, for the report; rotary: factor on rotary positions by length.

    tokens: read in all, layers left out counted as parts; cost: those over what looking at everything once takes
    """

    bands: Sequence[tuple[Band, Mapping[str, Tensor]]]
    scores: list[dict[str, Any]]
    rotary: Mapping[int, float]
    tokens: int
    cost: float
    record: dict[str, Any]


def decide(job: Job, found: Found) -> Decided:
    """Each length's candidates against each other; what the recipe says outright where nothing was searched."""
    measured = found.measured
    tables, windows = measured.tables, measured.tokens.windows
    if found.scoring is None:
        read = windows.numel() if tables.layers else 0
        return Decided([unsearched_band(job, tables)], [], {}, read, 0.0, found.record)
    chosen: list[Candidate] = []
    scores: list[dict[str, Any]] = []
    multiples = job.recipe.rotary.factors if job.lm.rotary else ()
    comparisons = (len(job.methods) + bool(multiples)) * len(job.lengths)
    token_layers, distinct = 0.0, 0
    shares: dict[int, float] = {}  # as the sidecar will have them; lengths ascend
    for pick in progress(found.picks, "deciding on fresh text", unit="length"):
        judge = replace(_judge(job, found, found.scoring, pick.length), shares=shares)
        by = job.recipe.policy, job.options.seed, comparisons
        best, rows = choose(judge, pick, job.methods, *by)
        best, more = stretch(found.scoring, judge, best, pick.length, *by, multiples)
        chosen.append(best)
        if kept := stored(pick, best).filter:
            shares[pick.length] = kept.share
        scores += rows + more
        token_layers += judge.token_layers
        distinct += (found.scoring.count(pick.length) + judge.count(pick.length)) * pick.length
    made = bands(tables, found.picks, chosen)  # may sweep, which counts
    token_layers += found.scoring.token_layers + measured.sweeper.token_layers
    spent = token_layers / len(tables.layers) + windows.numel()
    rotary = {pick.length: best.rotary for pick, best in zip(found.picks, chosen)}
    return Decided(made, scores, rotary, int(spent), spent / distinct, found.record)


def _judge(job: Job, found: Found, scoring: Scoring, length: int) -> Scoring:
    """The same comparison on windows that the search has not seen, and on more of them."""
    tokens, seed = found.measured.tokens, job.options.seed + 1
    windows = {length: tokens.first(tokens.judged, job.judging(length))}
    return scoring.on(*compared(job, tokens, windows, scoring.objective, seed), "judge")
