"""A hybrid over two devices: read, filtered and measured as on one. It has not been run: it needs two GPUs."""

from __future__ import annotations

import pytest
import torch

from longscan.calibrate.measure.measuring import measure
from longscan.runtime import attach, load

from ..checkpoints import make_sidecar
from ..runtime.attach.models import build

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(params=["bamba", "jamba", "falcon_h1"])
def halves(request, tmp_path, monkeypatch):
    """A checkpoint, and where its modules go: the stack's two halves on two GPUs."""
    model = build(request.param)
    model.save_pretrained(tmp_path)
    n = len(model.model.layers)
    where = {f"model.{name}": 1 for name, _ in model.model.named_children() if name != "layers"}
    where |= {"model.embed_tokens": 0, "lm_head": 1} | {f"model.layers.{i}": int(i >= n // 2) for i in range(n)}
    own = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, device_map=None, **more: own(*args, device_map=device_map and where, **more),
    )
    return tmp_path


@torch.no_grad()
def test_over_two_gpus(halves, relative_rms):
    ids = torch.randint(1, 64, (2, 64))
    cpu = load(halves, device="cpu")
    spread = load(halves, device="spread", dtype="float32")
    assert len({device.index for device in spread.weights.devices}) == 2
    side = make_sidecar(cpu)
    wanted = cpu.with_sidecar(side).prefill(ids, method="filter")
    found = spread.with_sidecar(side).prefill(ids, method="filter")
    assert relative_rms(found.logits.cpu(), wanted.logits) < 1e-4
    token = torch.tensor([1, 2])
    after = [lm.with_sidecar(side).step(token, out.state)[0] for lm, out in ((cpu, wanted), (spread, found))]
    assert relative_rms(after[1].cpu(), after[0]) < 1e-4
    padded = [ids[0, :40], ids[1]]
    rows = [lm.with_sidecar(side).prefill(padded, method="filter").logits for lm in (cpu, spread)]
    assert relative_rms(rows[1].cpu(), rows[0]) < 1e-4
    windows = torch.randint(1, 64, (4, 32))
    for one, other in zip(measure(cpu, windows, 64), measure(spread, windows, 64)):
        assert torch.allclose(one.log_decay, other.log_decay, rtol=1e-4)
        assert torch.allclose(one.sketch.total(), other.sketch.total().cpu(), rtol=1e-3)
    model = transformers.AutoModelForCausalLM.from_pretrained(halves, device_map="auto").eval()
    with attach(model, side, method="filter"):
        assert relative_rms(model(ids.cuda()).logits[:, -1:].cpu(), wanted.logits) < 1e-4
