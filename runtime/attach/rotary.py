"""Rotary positions of a hybrid's attention, stretched by a factor (YaRN) as transformers itself computes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..sidecar.plan import Yarn

_REMEMBERED = 64  # a factor's module holds half a head of floats


class Rotary:
    """A model's rotary embedding and its twins: those transformers builds where the config asks for YaRN.

    The embedding itself is never written to, so that threads, and the model once it is detached, find it as it was.
    """

    def __init__(self, module: Any, own: Callable[..., Any]):
        self._module, self._own = module, own
        self._twins: dict[Yarn, Any] = {}

    def __call__(self, x: Tensor, position_ids: Tensor, rows: Sequence[Yarn | None]) -> tuple[Tensor, Tensor]:
        """cos and sin, (B or 1, L, rotated width of a head) in x's dtype; rows: one for all the batch, or one each."""
        if len(set(rows)) == 1:
            found: tuple[Tensor, Tensor] = self._of(rows[0])(x, position_ids)
            return found
        places = position_ids.expand(len(rows), -1)
        parts = [self._of(yarn)(x, places[b : b + 1]) for b, yarn in enumerate(rows)]
        return torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])

    def _of(self, yarn: Yarn | None) -> Any:
        if yarn is None:
            return self._own
        found = self._twins.get(yarn)
        if found is None:
            config = copy.deepcopy(self._module.config)
            config.rope_parameters = {
                **config.rope_parameters,
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original,
            }
            found = type(self._module)(config)
            if len(self._twins) >= _REMEMBERED:
                self._twins.clear()  # other threads hold what they looked up
            self._twins[yarn] = found
        return found
