"""Candidates -> the tensors and the policy entry of a band."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...runtime.sidecar.sidecar import Band
from ..measure.measuring import LayerMeasurement
from .candidates import BEYOND, DecimatePick, FilterPick, ScalePick, share_at, table_lengths
from .channels import furthest, global_channels, score_weights

Sweep = Callable[[FilterPick, "DecimatePick | None", float, int], Tensor]  # share, length -> (n_layer, D)


@dataclass
class Tables:
    """Builds bands from measurements. sweep: makes the tables of sequential fits, of up to `swept_to` tokens."""

    layers: Sequence[LayerMeasurement]
    train_length: int
    sweep: Sweep
    swept_to: float = math.inf
    _stretched: dict[tuple[int, float], Tensor] = field(default_factory=dict)  # (layer, share) -> g before theta

    def thresholds(self, pick: FilterPick, shares: Sequence[float]) -> Tensor:
        """The stretched g for each of `shares`: (len(shares), n_layer, D) float32, 0 where nothing is filtered."""
        table = torch.zeros(len(shares), len(self.layers), len(self.layers[0].decay()))
        for i in pick.layers:
            layer = self.layers[i]
            kept = [min(1.0, share) for share in shares]
            if new := [share for share in dict.fromkeys(kept) if (i, share) not in self._stretched]:
                rows = torch.tensor(new, dtype=torch.float64)[:, None].expand(-1, table.shape[2])
                self._stretched |= zip([(i, share) for share in new], layer.sketch.threshold(rows).float().cpu())
            g = torch.stack([self._stretched[i, share] for share in kept])
            table[:, i] = torch.where(global_channels(layer, pick.log_theta), g, 0.0)
        return table

    def band(
        self,
        lengths: Sequence[int],
        filters: Mapping[int, FilterPick],
        decimate: DecimatePick | None,
        scale: ScalePick | None,
        *,
        shares: Mapping[int, float] | None = None,
        top: int | None = None,
        only: bool = False,
    ) -> dict[str, Tensor]:
        """A band's tensors (names without their prefix).

        lengths: the calibrated ones; filters: length -> pick, empty for none
        shares: kept shares at the calibrated lengths of all bands, so that m(S) has no seams; None: those of `filters`
        top: the last length that this band's rows are asked for; None: there is none, it is the last band
        only: no rows but those a candidate needs to be scored at `lengths`
        """
        L, tensors = self.train_length, {}
        pick = filters[min(filters)] if filters else None
        # Decimation shortens scans, which look a stretched g up at lengths below the prompt's.
        few = only and not (decimate and pick and pick.fit == "stretched")
        cheap = pick is None or pick.fit == "stretched"  # a row of a sequential fit costs a sweep of its length
        last = max(lengths) if top is None or only else top
        known = {length: each.share for length, each in filters.items()} if shares is None else shares
        calibrated = {*lengths, *(n for n in known if n <= last)} if cheap else lengths
        at = sorted(lengths) if few else table_lengths(L, last, sorted(calibrated), fine=cheap)
        rows_swept = sum(n <= self.swept_to for n in at)
        if top is None and not only:
            at += [round(last * 2 ** (k / 2)) for k in range(1, BEYOND + 1)]
        if pick or scale:
            tensors["lengths"] = torch.tensor(at)
        if pick:
            kept = [share_at(n, known, L) for n in at]
            if pick.fit == "stretched":
                tensors["thresholds"] = self.thresholds(pick, kept)
            else:
                fits = [decimate] if decimate and only else [None, decimate] if decimate else [None]
                rows = list(zip(at, kept))[:rows_swept]
                swept = {fit: torch.stack([self.sweep(pick, fit, c, n) for n, c in rows]) for fit in fits}
                past = self.thresholds(pick, kept[rows_swept - 1 :])
                swept = {fit: torch.cat([table, _as_far_apart(table[-1], past)]) for fit, table in swept.items()}
                if decimate:
                    tensors["both"] = swept[decimate]
                tensors["thresholds"] = swept.get(None, torch.zeros(len(at), *swept[fits[0]].shape[1:]))
        if decimate:
            tensors["layers"] = torch.tensor(decimate.layers)
            tensors["keep"] = torch.tensor(decimate.keep())
            tensors["weights"] = torch.stack([score_weights(self.layers[i], decimate.score) for i in decimate.layers])
        if scale:
            powers = scale.powers(furthest(self.layers, scale.top))  # (n_layer, D)
            tensors["scales"] = torch.stack([(n / L) ** -powers.double() for n in at]).float()
        return tensors


def _as_far_apart(swept: Tensor, stretched: Tensor) -> Tensor:
    """Rows beyond the last swept one (n_layer, D), in the ratio of stretched rows (1 + R, n_layer, D) from there on."""
    ratio = stretched[1:] / stretched[0].clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(stretched[0] > 0, swept * ratio, swept)


def band_entry(
    method: str, filters: Mapping[int, FilterPick], decimate: DecimatePick | None, lengths: Sequence[int], L: int
) -> Band:
    """The policy's entry of the same band."""
    first = filters[min(filters)] if filters else None
    return Band(
        lengths=tuple(sorted(lengths)),
        method=method,
        theta=None if first is None else math.exp(first.log_theta),
        log_theta=None if first is None else first.log_theta,
        mass={str(n): round(pick.share * n / L, 6) for n, pick in sorted(filters.items())},
        g_fit=first.fit if first else "stretched",
        score=decimate.score if decimate else "all",
    )
