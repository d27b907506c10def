"""Capturing, on a stand-in for CUDA: one at a time, a generator of its own, and all as before where it fails."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from longscan.runtime.decode import graph


class Generator:
    """A device's generator, whose state may be exchanged."""

    def __init__(self, device="cuda"):
        self.device, self.state = device, object()

    def graphsafe_get_state(self):
        kept = Generator()
        kept.state = self.state
        return kept

    def graphsafe_set_state(self, other):
        self.state = other.state

    def seed(self):
        pass


@pytest.fixture
def cuda(monkeypatch):
    """What captures did and where: `log`, `default` (the generator), `stream` (of this thread), `broken` (begin)."""

    class Cuda:
        log, default, local, broken = [], Generator(), threading.local(), False

    class Graph:
        def capture_begin(self, capture_error_mode):
            Cuda.log.append(("begin", Cuda.default.state, Cuda.local.stream, capture_error_mode))
            if Cuda.broken:
                raise RuntimeError("no capture")

        def capture_end(self):
            Cuda.log.append(("end", Cuda.default.state, Cuda.local.stream, None))

    @contextmanager
    def stream(side):
        Cuda.local.stream = side
        try:
            yield
        finally:
            Cuda.local.stream = "own"

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", (Cuda.default,))
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(graph, "_side", lambda device: "side")
    return Cuda


def test_one_at_a_time(cuda):
    def run():
        time.sleep(0.01)
        return torch.zeros(1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: graph.capture(run, torch.device("cuda", 0)), range(8)))
    assert [what for what, *_ in cuda.log] == ["begin", "end"] * 8


def test_another_generator_in_the_default_ones_place(cuda):
    own = cuda.default.state
    graph.capture(lambda: torch.zeros(1), torch.device("cuda", 0))
    (_, lent, *where), (_, after, *_) = cuda.log
    assert lent is not own and after is own and where == ["side", "thread_local"]


@pytest.mark.parametrize("where", ["begin", "run"])
def test_a_failure_leaves_stream_generator_and_capture_as_they_were(cuda, where):
    own, cuda.broken = cuda.default.state, where == "begin"

    def run():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="no capture" if where == "begin" else "out of memory"):
        graph.capture(run, torch.device("cuda", 0))
    assert cuda.default.state is own and cuda.local.stream == "own"
    assert [what for what, *_ in cuda.log] == (["begin"] if where == "begin" else ["begin", "end"])
    cuda.broken = False
    graph.capture(lambda: torch.zeros(1), torch.device("cuda", 0))  # the lock is free
