"""A decode step as one CUDA graph: its hundreds of launches are captured once and replayed in one call.

A graph reads and writes the addresses it was captured with. So the token, thresholds and scales lie in buffers of its
own, written before a replay where they differ; conv and ssm states are the State's own tensors, updated in place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from threading import Lock

import torch
from torch import Tensor

from ...kernels.shared.dispatch import on_triton
from ..sidecar.plan import LayerPlan

Plans = Sequence[LayerPlan] | None
Step = Callable[[Tensor, Plans], Tensor]  # token (B,), plans -> logits (B, V); updates the states in place
_log = logging.getLogger("longscan.runtime")
_capturing = Lock()  # two captures at a time would break each other


def is_graphed(backend: str, ssm: Tensor) -> bool:
    """Whether steps of a state run as a graph: on a GPU, by Triton's kernels, outside a capture of the caller's."""
    return ssm.device.type == "cuda" and on_triton(backend, ssm) and not torch.cuda.is_current_stream_capturing()


class StepGraph:
    """The steps of one State. The first of each kind is launched as it is, which compiles its kernels; the second is
    captured, and from then on replayed. Kinds differ in which layers have thresholds and scales."""

    def __init__(self, weights: object, conv: Tensor, ssm: Tensor, token: Tensor, plans: Plans):
        self._bound = weights, conv, ssm
        self._token = torch.empty_like(token, device=ssm.device)
        self._plans = None if plans is None else [LayerPlan(_like(p.threshold), _like(p.scale)) for p in plans]
        self._given: Plans = None  # what the buffers hold
        self._captured: tuple[Callable[[], None], Tensor] | None = None
        self._warm = self._refused = False

    def fits(self, weights: object, conv: Tensor, ssm: Tensor, plans: Plans) -> bool:
        """Whether a step is of this graph's kind, on the tensors it was made for."""
        if any(own is not given for own, given in zip(self._bound, (weights, conv, ssm))):
            return False
        return plans is self._given or _kind(plans) == _kind(self._plans)

    def step(self, run: Step, token: Tensor, plans: Plans) -> Tensor:
        """token (B,) -> logits (B, V), the caller's own."""
        self._token.copy_(token)
        if plans is not self._given and plans is not None and self._plans is not None:
            for own, given in zip(self._plans, plans):
                _write(own.threshold, given.threshold)
                _write(own.scale, given.scale)
        self._given = plans
        if not self._warm or self._refused:
            self._warm = True
            return run(self._token, self._plans)
        if self._captured is None:
            try:
                self._captured = capture(lambda: run(self._token, self._plans), self._token.device)
            except RuntimeError as error:  # nothing has run, so nothing has changed
                self._refused = True
                _log.warning("no CUDA graph of a decode step (%s): its kernels are launched one by one", error)
                return run(self._token, self._plans)
        replay, logits = self._captured
        replay()
        return logits.clone()


def capture(run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """A call that repeats `run` on the device, and the tensor where its result then lies; nothing is run yet.

    Other threads go on meanwhile, and may allocate. One that synchronises the whole device gets CUDA's error, and so
    does the capture. Raises RuntimeError, with the thread's stream as it was.
    """
    graph = torch.cuda.CUDAGraph()
    with _capturing, torch.cuda.stream(_side(device)):
        _begin(graph, torch.cuda.default_generators[torch.cuda.current_device()])
        try:
            out = run()
        finally:
            graph.capture_end()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay, out


def _begin(graph: torch.cuda.CUDAGraph, default: torch.Generator) -> None:
    """Begin a capture that takes another generator in the default one's place.

    A capture keeps the device's default generator for itself (torch 2.11): until it ends a draw in any other thread
    fails, and after a capture that failed so does every draw of the process. So it keeps one that nobody else has; a
    draw from the default one fails only while this function runs.
    """
    own, lent = default.graphsafe_get_state(), torch.Generator(default.device)
    lent.seed()
    default.graphsafe_set_state(lent)
    try:
        graph.capture_begin(capture_error_mode="thread_local")
    finally:
        default.graphsafe_set_state(own)


@lru_cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """What captures run on, one a device: cuBLAS keeps a workspace for each stream it has seen."""
    return torch.cuda.Stream(device)


def _kind(plans: Plans) -> list[tuple[object, object]] | None:
    return None if plans is None else [(_shape(p.threshold), _shape(p.scale)) for p in plans]


def _shape(t: Tensor | None) -> torch.Size | None:
    return None if t is None else t.shape


def _like(t: Tensor | None) -> Tensor | None:
    return None if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)


def _write(own: Tensor | None, given: Tensor | None) -> None:
    if own is not None and given is not None:
        own.copy_(given)
