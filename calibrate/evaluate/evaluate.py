"""`calibrate eval`: methods x lengths on text that was neither trained nor calibrated on."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...runtime.errors import SidecarError
from ...runtime.model import LM
from ...runtime.sidecar.plan import Plan
from ..console import progress
from ..errors import UserError
from ..search.tasks import passkey_answered, tail_losses
from ..texts.prompts import DEPTHS, passkey_trials
from ..texts.windows import at_length, pg19_windows, token_windows
from .recall import recall_trials, share_answered

Task = Literal["perplexity", "passkey", "multikey", "variables"]
Protocol = Literal["paired", "pg19"]
UNITS = {"perplexity": "perplexity per token", "variables": "share of the variables named"}
_TAIL = 100
_PILOT, _FEWEST, _MOST = 16, 16, 256  # windows
_AIM = 0.01  # relative standard error of the default number of windows
_TRIALS = 20  # prompts a depth of the recall tasks

# Of one length: the tokens of all windows or prompts, and how they are read: method -> a value of each, (n,) float64.
Readable = tuple[int, Callable[[str], Tensor]]


@dataclass(frozen=True)
class Request:
    """One evaluation."""

    task: Task
    lengths: tuple[int, ...]
    methods: tuple[str, ...]
    windows: int | None
    protocol: Protocol
    seed: int
    batch_tokens: int


def evaluate(lm: LM, documents: Sequence[Tensor], request: Request) -> dict[str, Any]:
    """Rows for every length and method. documents: token ids of the evaluation text.

    Raises UserError where the texts are too short, SidecarError where a method is asked for that the sidecar lacks.
    """
    sets = (_windows if request.task == "perplexity" else _prompts)(lm, documents, request)
    return {
        "model": lm.source.name,
        "model_fingerprint": lm.fingerprint,
        "task": request.task,
        "protocol": request.protocol if request.task == "perplexity" else request.task,
        "unit": UNITS.get(request.task, "share answered"),
        "rows": _rows(lm, request, sets),
        "machine": machine(lm),
    }


def machine(lm: LM) -> dict[str, Any]:
    """What the numbers were measured on."""
    gpu = torch.cuda.get_device_name(lm.device) if lm.device.type == "cuda" else None
    return {
        "device": gpu or f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "dtype": str(lm.weights.embedding.dtype).removeprefix("torch."),
        "system": platform.system(),
    }


def resolve(lm: LM, length: int, method: str) -> Plan:
    """The plan a method comes to at a length; without a sidecar everything but auto and none is refused."""
    if lm.sidecar is None:
        if method not in ("auto", "none"):
            raise UserError(f"method {method} needs a sidecar; give --sidecar")
        return Plan("none", length)
    return lm.sidecar.plan(length, method)


def available(lm: LM, lengths: Sequence[int]) -> tuple[str, ...]:
    """The methods that can be forced at every length: the default of --methods."""
    if lm.sidecar is None:
        return ("none",)

    def works(method: str) -> bool:
        try:
            for length in lengths:
                resolve(lm, length, method)
        except SidecarError:
            return False
        return True

    return tuple(method for method in ("none", "filter", "decimate", "both", "scale", "auto") if works(method))


def _windows(lm: LM, documents: Sequence[Tensor], request: Request) -> dict[int, Readable]:
    """By length, the loss of each window."""
    lengths = sorted(request.lengths)
    if lengths[0] < 2:
        raise UserError(f"length {lengths[0]} is too short to score; give --lengths of at least 2")
    if request.protocol == "paired":
        tail = min(_TAIL, lengths[0] // 2)
        longest = token_windows(documents, lengths[-1], request.windows or _MOST, tail=tail, seed=request.seed)
        if request.windows is None:
            longest = longest[: _enough(lm, at_length(longest[:_PILOT], lengths[0]), tail, request.batch_tokens)]
        sets = {length: at_length(longest, length) for length in lengths}
    else:
        tail = min(_TAIL, lengths[0] - 1)
        sets = {}
        for length in lengths:
            sets[length] = torch.cat([pg19_windows(doc, length) for doc in documents])[: request.windows]
            if not len(sets[length]):
                raise UserError(f"no document is longer than {length} tokens; give shorter --lengths or longer texts")

    def losses(windows: Tensor) -> Readable:
        return windows.numel(), lambda method: tail_losses(lm, windows, tail, method, request.batch_tokens)

    return {length: losses(windows) for length, windows in sets.items()}


def _enough(lm: LM, pilot: Tensor, tail: int, batch_tokens: int) -> int:
    """Windows for a standard error of about 1% of the perplexity, judged on a pilot of the plain model."""
    spread = float(tail_losses(lm, pilot, tail, "none", batch_tokens).std()) if len(pilot) > 1 else 0.0
    return min(_MOST, max(_FEWEST, math.ceil((spread / _AIM) ** 2)))


def _prompts(lm: LM, documents: Sequence[Tensor], request: Request) -> dict[int, Readable]:
    """By length, the share that is answered of what each prompt asks for."""
    depths = [depth for _ in range(request.windows or _TRIALS) for depth in DEPTHS]

    def answered(length: int) -> Readable:
        if request.task == "passkey":
            keys = passkey_trials(lm, documents, length, depths, "evaluate", request.seed)

            def exact(method: str) -> Tensor:
                return passkey_answered(lm, keys, method, request.batch_tokens)[0].double()

            return keys.prompts.numel(), exact
        trials = recall_trials(lm, documents, length, depths, request.task, request.seed)
        return trials.prompts.numel(), lambda method: share_answered(lm, trials, method, request.batch_tokens)

    return {length: answered(length) for length in sorted(request.lengths)}


def _rows(lm: LM, request: Request, sets: Mapping[int, Readable]) -> list[dict[str, Any]]:
    """In the order asked for. The plain model is read in any case: every error is that of the difference from it."""
    cells = [(length, method) for length in sets for method in dict.fromkeys(("none", *request.methods))]
    plans = {cell: resolve(lm, *cell) for cell in cells}  # refuse before hours of work, not after
    done: dict[Plan, tuple[Tensor, float]] = {}  # equal plans are read once
    for length, method in progress(cells, "evaluating", unit="cell"):
        plan = plans[length, method]
        if plan not in done:
            began = time.monotonic()
            done[plan] = (sets[length][1](method), time.monotonic() - began)
    return [
        _row(method, plans[length, method], sets[length][0], done, request.task)
        for length in sets
        for method in request.methods
    ]


def _row(method: str, plan: Plan, tokens: int, done: Mapping[Plan, tuple[Tensor, float]], task: Task) -> dict[str, Any]:
    plain = Plan("none", plan.length)
    values, seconds = done[plan]
    value, influence = _reported(values, task)
    if plan != plain:
        influence = influence - _reported(done[plain][0], task)[1]
    n = len(values)
    error = float(influence.std()) / math.sqrt(n) if n > 1 else None
    row: dict[str, Any] = {
        "length": plan.length,
        "method": method,
        "resolved_method": plan.method,
        **({"rotary": plan.rotary.factor} if plan.rotary else {}),
        "extrapolated": plan.extrapolated,
        "value": round(value, 6),
        "stderr": None if error is None else round(error, 6),
        "windows": n,
        "seconds": round(seconds, 3),
        "tokens": tokens,
    }
    if task != "perplexity":
        by_depth = values.view(-1, len(DEPTHS)).mean(0)
        row["depths"] = {str(depth): round(float(share), 4) for depth, share in zip(DEPTHS, by_depth)}
    return row


def _reported(values: Tensor, task: Task) -> tuple[float, Tensor]:
    """What values (n,) come to, and the first-order influence of each on that, (n,): exp of the mean, or the mean."""
    mean, apart = float(values.mean()), values - values.mean()
    return (math.exp(mean), math.exp(mean) * apart) if task == "perplexity" else (mean, apart)
