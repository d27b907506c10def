"""What a layer does at one length: the sidecar's reading, small and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

METHODS = ("none", "filter", "decimate", "both", "scale")


class Yarn(NamedTuple):
    """How far rotary positions are stretched: transformers' rope parameters of type yarn, by its names."""

    factor: float  # > 1
    original: int  # original_max_position_embeddings: the training length


@dataclass(frozen=True)
class Plan:
    """Method at a length S, and the tokens each decimating layer keeps (floor(P_s), without the last r)."""

    method: str
    length: float  # S in tokens; math.inf for an open-ended stream
    decimate: Mapping[int, int] = field(default_factory=dict)
    extrapolated: bool = field(default=False, compare=False)  # S lies beyond the last calibrated length
    rotary: Yarn | None = None  # of a hybrid's attention; None = its positions as they are

    def __hash__(self) -> int:
        return hash((self.method, self.length, tuple(sorted(self.decimate.items())), self.rotary))

    def scan_lengths(self, n_layer: int, protected: int) -> list[float]:
        """Tokens the scan of each layer sees, S_i after decimation; `protected` = r, the last tokens always kept."""
        lengths: list[float] = []
        tokens = self.length
        for layer in range(n_layer):
            if layer in self.decimate:
                tokens = kept(int(tokens), self.decimate[layer], protected) + min(protected, int(tokens))
            lengths.append(tokens)
        return lengths


MIN_KEEP = 20  # DeciMamba never keeps fewer tokens


def kept(entering: int, keep: int, protected: int) -> int:
    """n = min(S_i - r, max(floor(P_s), 20)): how many of the first S_i - r tokens survive."""
    return min(max(entering - protected, 0), max(keep, MIN_KEEP))


@dataclass(frozen=True)
class LayerPlan:
    """What one layer needs to know; the layer looks nothing else up."""

    threshold: Tensor | None = None  # (D,) or (B, D) float32, 0 where local; None = unfiltered
    scale: Tensor | None = None  # (D,) or (B, D) float32, factor on delta; None = 1
    keep: int | None = None  # tokens kept by decimation; None = all
    score_weight: Tensor | None = None  # (D,) float32; None = the published norm


PLAIN = LayerPlan()
