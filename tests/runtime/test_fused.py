"""With Triton, what stands between two scans is one kernel each; the numbers are those of the oracle."""

from __future__ import annotations

import pytest
import torch

from longscan.kernels.conv import triton as conv
from longscan.kernels.norm import triton as norm
from longscan.runtime import load

from ..checkpoints import random_tensors, write_falcon


def counting(counts, name, function):
    def counted(*given):
        counts[name] += 1
        return function(*given)

    return counted


@pytest.fixture(scope="module")
def falcon(tmp_path_factory):
    return write_falcon(tmp_path_factory.mktemp("falcon"), random_tensors(M=32, n_layer=2, V=64, N=16))


@pytest.mark.parametrize("kind", ["demo", "demo-mamba2", "falcon"])
def test_each_layer_launches_them_once(kind, falcon, monkeypatch, relative_rms):
    names = ("add_rms_norm", "rms_norm", "gated_rms_norm", "inner_rms_norm", "causal_conv1d_step")
    counts = dict.fromkeys(names, 0)
    for name in counts:
        place = conv if "conv" in name else norm
        monkeypatch.setattr(place, name, counting(counts, name, getattr(place, name)))
    ids = torch.arange(12).view(2, 6)
    found = {}
    for backend in ("reference", "triton"):
        lm = load(falcon if kind == "falcon" else kind, dtype="float32", backend=backend)
        layers = lm.config.n_layer
        read = lm.prefill(ids, chunk=6, logits_to_keep=0)
        prefill, before = read.logits, dict(counts)
        found[backend] = [prefill, *lm.step(ids[:, 0], read.state)[:1], read.state.conv]
        once = {"add_rms_norm": layers - 1, "rms_norm": 2}
        once |= {"gated_rms_norm": layers * (kind == "demo-mamba2"), "inner_rms_norm": layers * (kind == "falcon")}
        if backend == "triton":
            assert before == {**once, "causal_conv1d_step": 0}
            step = {name: counts[name] - before[name] for name in counts}
            assert step == {**once, "causal_conv1d_step": layers}
    for right, other in zip(*found.values(), strict=True):
        assert relative_rms(other, right) < 1e-5
