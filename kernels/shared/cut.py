"""The filter for engines that hand over raw delta only: one number a channel to compare it with."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import floats


def raw_delta_cut(threshold: Tensor) -> Tensor:
    """Where raw delta, its bias added in float32, is <= this, softplus of it is <= threshold: the filter drops it.

        softplus(raw + bias) <= g   <=>   raw + bias <= log(expm1(g))

    threshold: g, any shape ((D,) a channel, (B, D) a row and channel), any float dtype; read as float32, as scans do
    returns: float32 of that shape, on that device: the largest float32 whose softplus, itself rounded to float32, is
        <= g; so a token whose delta equals g is dropped, where log(expm1(g)) rounded to float32 would keep some.
        Computed in float64. -inf for g <= 0 (no delta above 0 is dropped), inf for inf

    Raw delta that is NaN fails every comparison and stays, as in our scans. A scan whose own float32 softplus is off by
    e may decide otherwise where softplus(raw + bias) lies within e of g, and there alone. Raises ValueError for NaN in
    `threshold`: as a cut it would filter nothing, silently.
    """
    floats(threshold=threshold)
    g = threshold.detach().float()
    if bool(g.isnan().any()):
        raise ValueError("threshold holds NaN; take g from a sidecar that was checked (Sidecar.read)")
    above = torch.nextafter(g, g.new_tensor(torch.inf))
    wide = g.double()
    # Everything below the middle between g and the next float32 rounds to g.
    middle = torch.where(above.isinf(), wide, (wide + above.double()) / 2)
    exact = middle + torch.log(-torch.expm1(-middle))  # log(expm1(middle)), which overflows nowhere
    cut = exact.float()
    cut = torch.where(cut.double() > exact, torch.nextafter(cut, g.new_tensor(-torch.inf)), cut)  # rounded down
    return torch.where(g > 0, cut, -torch.inf)
