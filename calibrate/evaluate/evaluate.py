"""`calibrate eval`: methods x lengths on text that was neither trained nor calibrated on."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
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
    rows = _perplexity(lm, documents, request) if request.task == "perplexity" else _recall(lm, documents, request)
    return {
        "model": lm.source.name,
        "task": request.task,
        "protocol": request.protocol if request.task == "perplexity" else request.task,
        "unit": UNITS.get(request.task, "share answered"),
        "rows": rows,
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


def _perplexity(lm: LM, documents: Sequence[Tensor], request: Request) -> list[dict[str, Any]]:
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

    def losses(length: int, method: str) -> Tensor:
        return tail_losses(lm, sets[length], tail, method, request.batch_tokens)

    rows = []
    for length, method, plan, loss, plain, seconds in _each(lm, lengths, request.methods, losses):
        n = len(loss)
        value = math.exp(float(loss.mean()))
        # First-order influence of a window on exp(mean loss), and on its difference from the plain model's.
        influence = value * (loss - loss.mean())
        if plain is not None and plan != Plan("none", length):
            influence = influence - math.exp(float(plain.mean())) * (plain - plain.mean())
        rows.append(_row(length, method, plan, value, influence, n, seconds, sets[length].numel()))
    return rows


def _enough(lm: LM, pilot: Tensor, tail: int, batch_tokens: int) -> int:
    """Windows for a standard error of about 1% of the perplexity, judged on a pilot of the plain model."""
    spread = float(tail_losses(lm, pilot, tail, "none", batch_tokens).std()) if len(pilot) > 1 else 0.0
    return min(_MOST, max(_FEWEST, math.ceil((spread / _AIM) ** 2)))


def _recall(lm: LM, documents: Sequence[Tensor], request: Request) -> list[dict[str, Any]]:
    lengths = sorted(request.lengths)
    each = request.windows or _TRIALS
    depths = [depth for _ in range(each) for depth in DEPTHS]
    sets = {n: _asked(lm, documents, n, depths, request) for n in lengths}

    def answered(length: int, method: str) -> Tensor:
        return sets[length][1](method)

    rows = []
    for length, method, plan, right, plain, seconds in _each(lm, lengths, request.methods, answered):
        influence = right - right.mean()
        if plain is not None and plan != Plan("none", length):
            influence = influence - (plain - plain.mean())
        row = _row(length, method, plan, float(right.mean()), influence, len(right), seconds, sets[length][0])
        by_depth = right.view(each, len(DEPTHS)).mean(0)
        row["depths"] = {str(depth): round(float(share), 4) for depth, share in zip(DEPTHS, by_depth)}
        rows.append(row)
    return rows


def _asked(
    lm: LM, documents: Sequence[Tensor], length: int, depths: Sequence[float], request: Request
) -> tuple[int, Callable[[str], Tensor]]:
    """(tokens of a length's prompts, from a method to what of each prompt is answered, (n,) float64)."""
    if request.task == "passkey":
        keys = passkey_trials(lm, documents, length, depths, "evaluate", request.seed)
        return keys.prompts.numel(), lambda method: passkey_answered(lm, keys, method, request.batch_tokens)[0].double()
    trials = recall_trials(lm, documents, length, depths, request.task, request.seed)
    return trials.prompts.numel(), lambda method: share_answered(lm, trials, method, request.batch_tokens)


def _each(lm: LM, lengths: Sequence[int], methods: Sequence[str], run: Any) -> Any:
    """(length, method, plan, values, the plain model's values, seconds); equal plans are run once."""
    jobs = [(length, method) for length in lengths for method in methods]
    plans = {job: resolve(lm, *job) for job in jobs}  # refuse before hours of work, not after
    done: dict[Plan, tuple[Tensor, float]] = {}
    for length, method in progress(jobs, "evaluating", unit="cell"):
        plan = plans[length, method]
        if plan not in done:
            began = time.monotonic()
            done[plan] = (run(length, method), time.monotonic() - began)
        plain = done.get(Plan("none", length))
        yield length, method, plan, done[plan][0], plain[0] if plain else None, done[plan][1]


def _row(
    length: int, method: str, plan: Plan, value: float, influence: Tensor, n: int, seconds: float, tokens: int
) -> dict[str, Any]:
    error = float(influence.std()) / math.sqrt(n) if n > 1 else None
    return {
        "length": length,
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
