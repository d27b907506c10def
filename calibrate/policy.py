"""none, filter, decimate or both, at each length: by paired held-out scores, and only beyond doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arena import Arena, Score
from .picks import NONE, Candidate, band_entry, band_tensors
from .search import LengthPicks


def interval(difference: Tensor, confidence: float, draws: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of paired differences (n,)."""
    generator = torch.Generator().manual_seed(seed)
    n = len(difference)
    means = difference[torch.randint(n, (draws, n), generator=generator)].mean(1)
    edge = (1 - confidence) / 2
    return float(means.quantile(edge)), float(means.quantile(1 - edge))


def choose(
    arena: Arena, picks: LengthPicks, allowed: Sequence[str], confidence: float, draws: int, seed: int
) -> tuple[Candidate, list[dict[str, Any]]]:
    """The candidate "auto" uses at this length, and the comparison's table for the report.

    A method is out if it is worse than the plain model on a task of the objective beyond the interval, and is chosen
    over the plain model only if the objective's value is better beyond the interval.
    """
    plain = arena.score(NONE, picks.length)
    best, best_value = NONE, plain.value
    rows = [_row(picks.length, NONE, plain, plain, None, None)]
    for candidate in (picks.filter, picks.decimate, picks.both):
        if candidate is None:
            continue
        score = arena.score(candidate, picks.length)
        loss = score.losses - plain.losses
        answered = score.answered - plain.answered
        loss_in = interval(loss, confidence, draws, seed) if len(loss) else None
        answered_in = interval(answered, confidence, draws, seed) if len(answered) else None
        rows.append(_row(picks.length, candidate, score, plain, loss_in, answered_in))
        worse = (loss_in is not None and loss_in[0] > 0) or (answered_in is not None and answered_in[1] < 0)
        better = _value_interval(loss, answered, confidence, draws, seed)[0] > 0
        if candidate.method in allowed and better and not worse and score.value > best_value:
            best, best_value = candidate, score.value
    return best, rows


def _value_interval(loss: Tensor, answered: Tensor, confidence: float, draws: int, seed: int) -> tuple[float, float]:
    """Interval of the difference in value; the two tasks' windows are drawn independently."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.zeros(draws, dtype=torch.float64)
    for sign, difference in ((-1, loss), (1, answered)):
        n = len(difference)
        if n:
            means += sign * difference[torch.randint(n, (draws, n), generator=generator)].mean(1)
    edge = (1 - confidence) / 2
    return float(means.quantile(edge)), float(means.quantile(1 - edge))


def _row(
    length: int,
    candidate: Candidate,
    score: Score,
    plain: Score,
    loss_in: tuple[float, float] | None,
    answered_in: tuple[float, float] | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {"length": length, "method": candidate.method, "value": round(score.value, 6)}
    if len(score.losses):
        row["loss"] = round(float(score.losses.mean()), 6)
        row["loss_difference"] = None if loss_in is None else [round(v, 6) for v in loss_in]
    if len(score.exact):
        row["passkeys"] = round(float(score.exact.double().mean()), 6)
        row["passkey_difference"] = None if answered_in is None else [round(v, 6) for v in answered_in]
    if candidate.filter:
        row["share"], row["log_theta"] = candidate.filter.share, round(candidate.filter.log_theta, 4)
        row["filter_layers"] = list(candidate.filter.layers)
    if candidate.decimate:
        row["decimate"] = dict(zip(map(str, candidate.decimate.layers), candidate.decimate.keep()))
        row["score"] = candidate.decimate.score
    return row


def bands(arena: Arena, picks: Sequence[LengthPicks], chosen: Sequence[Candidate]) -> list[Any]:
    """One band a run of neighbouring lengths with the same picks but for the share; entries and tensors."""
    found: list[tuple[Any, Any]] = []
    group: list[tuple[LengthPicks, Candidate]] = []

    def close() -> None:
        if group:
            found.append(_band(arena, group))
            group.clear()

    for pick, best in zip(picks, chosen):
        if group and _key(*group[0]) != _key(pick, best):
            close()
        group.append((pick, best))
    close()
    return found


def _parts(pick: LengthPicks, best: Candidate) -> Candidate:
    """What the band stores: the chosen candidate, completed so that every allowed method can be forced."""
    whole = pick.both or Candidate(
        pick.filter.filter if pick.filter else None, pick.decimate.decimate if pick.decimate else None
    )
    alone_filter = pick.filter.filter if pick.filter else None
    alone_decimate = pick.decimate.decimate if pick.decimate else None
    if best.method == "both":
        return best
    return Candidate(
        best.filter or alone_filter or whole.filter,
        best.decimate or alone_decimate or whole.decimate,
    )


def _key(pick: LengthPicks, best: Candidate) -> tuple[Any, ...]:
    whole = _parts(pick, best)
    f = whole.filter
    return best.method, (f.log_theta, f.layers) if f else None, whole.decimate


def _band(arena: Arena, group: Sequence[tuple[LengthPicks, Candidate]]) -> tuple[Any, Any]:
    lengths = [pick.length for pick, _ in group]
    filters = {}
    for pick, best in group:
        part = _parts(pick, best).filter
        if part is not None:
            filters[pick.length] = part
    decimate = _parts(*group[0]).decimate
    entry = band_entry(group[0][1].method, filters, decimate, lengths, arena.train_length)
    return entry, band_tensors(arena.layers, filters, decimate, arena.train_length)
