"""What a run would cost, before it is paid: the run itself, with a journal that claims to know every score already."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...runtime.reading.chunks import bytes_a_token
from ..measure.measuring import statistics_bytes
from ..search.scoring import Objective
from ..speed import weight_bytes
from ..work.journal import Journal
from .decide import decide
from .job import Job
from .measure import measure
from .search import search
from .texts import Tokens

_TIMED = {"cuda": 16384}  # tokens read to tell the speed; 2048 elsewhere


class _Knows(Journal):
    """Takes every candidate for as good as any other, which neither ends a search early nor draws it out.

    Those that decimate late are a trifle better, so that the search goes on with what costs most.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(None, "", True)
        self._shape = len(job.lm.weights.layers), job.lm.weights.channels

    def get(self, key: str) -> Any:
        if not key.startswith("["):
            return 1.0 if key == "passkeys at L" else super().get(key)
        _, objective, candidate, _, start, stop = json.loads(key)
        late = candidate["decimate"]["layers"][0] if candidate["decimate"] else 0
        windows, right = _counts(stop - start, objective)
        return {"losses": [1.0 - 1e-9 * late] * windows, "right": [True] * right, "probability": [1.0] * right}

    def tensors(self, key: str) -> dict[str, Tensor] | None:
        return {"g": torch.zeros(self._shape)} if key.startswith("sweep ") else None


@dataclass(frozen=True)
class Plan:
    """measured: windows of the training length; searched, decided: windows and passkeys by length

    tokens: read through all layers; cost: see `stages.decide`; weights_bytes, pass_bytes: None for a hybrid, whose
    attention layers are not counted
    """

    train_length: int
    lengths: list[int]
    measured: int
    searched: dict[int, tuple[int, int]]
    decided: dict[int, tuple[int, int]]
    tokens: int
    cost: float
    weights_bytes: int | None
    statistics_bytes: int
    pass_bytes: int | None
    tokens_a_second: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        found = [f"measures {self.measured} windows of {self.train_length:,} tokens", ""]
        asks = any(trials for _, trials in self.searched.values())
        found.append(
            "length     searched on                decided on" + asks * "    (passkeys if it answers them at L)"
        )
        for n in self.lengths:
            both = [f"{w} windows, {k} passkeys" for w, k in (self.searched[n], self.decided[n])]
            found.append(f"{n:<10} {both[0]:<26} {both[1]}")
        minutes = f"{self.seconds / 60:.1f} minutes" if self.seconds >= 90 else f"{self.seconds:.0f} seconds"
        speed = f"at the {self.tokens_a_second:,.0f} tokens a second read here now"
        found += ["", f"{self.tokens:,} tokens (cost {self.cost:.1f}), about {minutes} {speed}"]
        parts = [("weights", self.weights_bytes), ("statistics", self.statistics_bytes), ("a pass", self.pass_bytes)]
        found.append("memory: " + ", ".join(f"{what} {size / 1e6:,.1f} MB" for what, size in parts if size is not None))
        return found


def plan(job: Job, tokens: Tokens) -> Plan:
    """Count a run's tokens on the real texts and the real search; time a few tokens on the real model.

    Channels are told global or local by one window, and every candidate counts as equally good: a real search differs
    by a tenth or two.
    """
    lm, known = job.lm, _Knows(job)
    few = measure(job, replace(tokens, windows=tokens.windows[:1]), known)
    found = search(job, replace(few, tokens=tokens), known)
    decided = decide(job, found)
    objective = found.scoring.objective if found.scoring else "perplexity"
    windows = {n: len(tokens.first(tokens.judged, job.judging(n))) for n in job.lengths}
    speed = _tokens_a_second(job, tokens)
    return Plan(
        train_length=job.L,
        lengths=job.lengths,
        measured=len(tokens.windows),
        searched={n: _counts(len(tokens.first(tokens.searched, job.searching(n))), objective) for n in job.lengths},
        decided={n: _counts(count, objective) for n, count in windows.items()},
        tokens=decided.tokens,
        cost=round(decided.cost, 2),
        weights_bytes=None if lm.hybrid else weight_bytes(lm.weights),
        statistics_bytes=len(lm.weights.layers) * statistics_bytes(lm, tokens.windows),
        pass_bytes=None if lm.hybrid else bytes_a_token(lm.weights) * max(job.batch_tokens, job.lengths[-1]),
        tokens_a_second=round(speed),
        seconds=round(decided.tokens / speed, 1),
    )


def _counts(windows: int, objective: Objective) -> tuple[int, int]:
    """Of so many windows: those whose loss is taken, and those that are asked for a passkey."""
    return windows * (objective != "passkey"), windows * (objective != "perplexity")


def _tokens_a_second(job: Job, tokens: Tokens) -> float:
    some = tokens.windows.flatten()[: _TIMED.get(job.lm.device.type, 2048)][None]
    for _ in range(2):  # the first compiles
        began = time.monotonic()
        job.lm.prefill(some, method="none", logits_to_keep=1).logits.cpu()
    return some.numel() / (time.monotonic() - began)
