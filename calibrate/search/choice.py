"""none, filter, decimate, both or scale, at each length: by paired scores on fresh text, and only beyond doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...runtime.sidecar.sidecar import Band
from ..errors import UserError
from ..recipe.recipe import Policy
from .candidates import NONE, Candidate
from .intervals import clearly_better, interval
from .scoring import Score, Scoring
from .search import LengthPicks
from .tables import Tables, band_entry


def choose(
    scoring: Scoring, picks: LengthPicks, allowed: Sequence[str], policy: Policy, seed: int, comparisons: int
) -> tuple[Candidate, list[dict[str, Any]]]:
    """The candidate "auto" uses at this length, and the comparison's table for the report.

    scoring: windows and trials that the search has not seen, so that what is reported is not the luck of the winner
    comparisons: methods x lengths of the whole calibration, which the confidence is corrected for (Bonferroni)

    Methods are tried in the order none, filter, decimate, both, scale, each against the one held so far: it takes over
    if the objective's value is better beyond the corrected interval, if its loss is not worse beyond doubt by more than
    `policy.loss_margin`, and if it loses less than `policy.margin` of the passkeys, beyond doubt. Raises UserError
    where the plain model's scores are no numbers.
    """
    confidence = policy.corrected(comparisons)
    plain = scoring.score(NONE, picks.length)
    if not math.isfinite(plain.value):
        raise UserError(
            f"the plain model's scores at {picks.length} tokens are no numbers; give --dtype float32 or other --lengths"
        )
    best, held = NONE, plain
    rows = [_row(picks.length, NONE, plain, None, None, scoring.texts)]
    for candidate in (picks.filter, picks.decimate, picks.both, picks.scale):
        if candidate is None:
            continue
        score = scoring.score(candidate, picks.length)
        rows.append(_row(picks.length, candidate, score, *_differences(score, plain, policy, seed), scoring.texts))
        if candidate.method in allowed and _takes_over(score, held, plain, scoring.texts, confidence, policy, seed):
            best, held = candidate, score
    return best, rows


def stretch(
    search: Scoring, judge: Scoring, held: Candidate, length: int, policy: Policy, seed: int, comparisons: int,
    multiples: Sequence[float],
) -> tuple[Candidate, list[dict[str, Any]]]:  # fmt: skip
    """The last coordinate of a model with rotary positions: what `choose` chose, with a factor on them or without.

    multiples: candidates, times S / L; those that come to 1 or less are none. The factor that does best on the texts of
    the search is held against the choice on texts that it has not seen, by the same rule. Returns the choice, and the
    comparison's row.
    """
    factors = [round(each * length / search.tables.train_length, 6) for each in multiples]
    tried = [replace(held, rotary=factor) for factor in factors if factor > 1]
    if not tried:
        return held, []
    best = search.halving(tried, length)[0]
    score, before, plain = judge.score(best, length), judge.score(held, length), judge.score(NONE, length)
    row = _row(length, best, score, *_differences(score, plain, policy, seed), judge.texts)
    taken = _takes_over(score, before, plain, judge.texts, policy.corrected(comparisons), policy, seed)
    return best if taken else held, [row]


def _takes_over(
    score: Score, held: Score, plain: Score, texts: int, confidence: float, policy: Policy, seed: int
) -> bool:
    """The rule of `choose`; of several texts, none may be read worse than by the plain model by that much."""
    loss, answered = _differences(score, held, policy, seed)
    most = policy.loss_margin
    worse = (loss is not None and not loss[0] <= most) or (answered is not None and not answered[0] >= -policy.margin)
    for more in [(score.losses - plain.losses)[i::texts] for i in range(texts)] if texts > 1 and loss else []:
        worse |= not interval(more, confidence, policy.bootstrap, seed)[0] <= most
    return not worse and clearly_better(score, held, confidence, policy.bootstrap, seed)


def _differences(
    score: Score, other: Score, policy: Policy, seed: int
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Intervals of the paired differences in loss and in passkeys answered; None for what was not asked."""
    loss, answered = score.losses - other.losses, score.answered - other.answered
    return (
        interval(loss, policy.confidence, policy.bootstrap, seed) if len(loss) else None,
        interval(answered, policy.confidence, policy.bootstrap, seed) if len(answered) else None,
    )


def _row(
    length: int,
    candidate: Candidate,
    score: Score,
    loss_in: tuple[float, float] | None,
    answered_in: tuple[float, float] | None,
    texts: int,
) -> dict[str, Any]:
    name = candidate.method + ("+yarn" if candidate.rotary > 1 else "")
    row: dict[str, Any] = {
        "length": length, "method": name, "value": round(score.value, 6), "windows": len(score)
    }  # fmt: skip
    if len(score.losses):
        row["loss"] = round(float(score.losses.mean()), 6)
        row["loss_difference"] = _finite(loss_in)
    if len(score.exact):
        row["passkeys"] = round(float(score.exact.double().mean()), 6)
        row["passkey_difference"] = _finite(answered_in)
    if texts > 1:
        row["by_text"] = [_of_text(score, i, texts) for i in range(texts)]
    if candidate.filter:
        row["share"], row["log_theta"] = candidate.filter.share, round(candidate.filter.log_theta, 4)
        row["filter_layers"], row["g_fit"] = list(candidate.filter.layers), candidate.filter.fit
    if candidate.decimate:
        row["decimate"] = dict(zip(map(str, candidate.decimate.layers), candidate.decimate.keep()))
        row["score"] = candidate.decimate.score
    if candidate.scale:
        row |= vars(candidate.scale)
    if candidate.rotary > 1:
        row["rotary"] = candidate.rotary
    return row


def _of_text(score: Score, text: int, texts: int) -> dict[str, float]:
    """Loss and passkeys on one of several texts."""
    losses, right = score.losses[text::texts], score.exact[text::texts].double()
    found = {"loss": float(losses.mean())} if len(losses) else {}
    found |= {"passkeys": float(right.mean())} if len(right) else {}
    return {key: round(value, 6) for key, value in found.items()}


def _finite(bounds: tuple[float, float] | None) -> list[float] | None:
    """For JSON; None where a single window says nothing, or scores are no numbers."""
    return None if bounds is None or not all(map(math.isfinite, bounds)) else [round(v, 6) for v in bounds]


def bands(
    tables: Tables, picks: Sequence[LengthPicks], chosen: Sequence[Candidate]
) -> list[tuple[Band, Mapping[str, Tensor]]]:
    """One band a run of neighbouring lengths at which "auto" does the same but for the share; entries and tensors.

    What is stored for forcing alone (a decimation beside a filter that is used) is the first length's: it keeps fewer
    tokens than any prompt of the band has.
    """
    groups: list[list[tuple[LengthPicks, Candidate]]] = []
    for pair in zip(picks, chosen):
        if groups and _key(groups[-1][0][1]) == _key(pair[1]):
            groups[-1].append(pair)
        else:
            groups.append([pair])
    filters = {pick.length: stored(pick, best).filter for pick, best in zip(picks, chosen)}
    shares = {length: each.share for length, each in filters.items() if each is not None}
    firsts = [group[0][0].length for group in groups]
    return [_band(tables, group, shares, top) for group, top in zip(groups, [*firsts[1:], None])]


def stored(pick: LengthPicks, best: Candidate) -> Candidate:
    """What the band holds at a length: the chosen candidate, completed so that every method can be forced.

    With both a filter and a decimation, the filter is the one found for "both" only if that is what auto uses.
    """
    alone = Candidate(
        pick.filter.filter if pick.filter else None,
        pick.decimate.decimate if pick.decimate else None,
        pick.scale.scale if pick.scale else None,
    )
    if best.method == "both":
        return Candidate(best.filter, best.decimate, alone.scale)
    return alone


def _key(best: Candidate) -> tuple[Any, ...]:
    """What "auto" does, but for the share."""
    f = best.filter
    return best.method, (f.log_theta, f.layers, f.fit) if f else None, best.decimate, best.scale


def _band(
    tables: Tables, group: Sequence[tuple[LengthPicks, Candidate]], shares: Mapping[int, float], top: int | None
) -> tuple[Band, Mapping[str, Tensor]]:
    lengths = [pick.length for pick, _ in group]
    whole = {pick.length: stored(pick, best) for pick, best in group}
    filters = {length: each.filter for length, each in whole.items() if each.filter is not None}
    first = whole[lengths[0]]
    entry = band_entry(group[0][1].method, filters, first.decimate, lengths, tables.train_length)
    return entry, tables.band(lengths, filters, first.decimate, first.scale, shares=shares, top=top)
