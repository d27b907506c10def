"""The training recipe: the scan's gradients, and that what it exports is the model it trained."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
import torch

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _recipes_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    yield
    for name in ("train_scan", "train_model", "train_data", "train_demo"):
        sys.modules.pop(name, None)


def test_scan_and_its_gradients_equal_autograd(relative_rms):
    from train_scan import scan

    g = torch.Generator().manual_seed(0)
    B, L, D, N = 2, 19, 32, 5
    given = [
        torch.randn(B, L, D, generator=g),
        torch.rand(B, L, D, generator=g),
        -torch.rand(D, N, generator=g) * 8,
        torch.randn(B, L, N, generator=g),
        torch.randn(B, L, N, generator=g),
    ]
    single = [t.clone().requires_grad_() for t in given]
    double = [t.double().requires_grad_() for t in given]
    u, delta, A, B_, C = double
    h, ys = torch.zeros(B, D, N, dtype=torch.float64), []
    for t in range(L):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[:, :, None] * B_[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1))
    wanted = torch.stack(ys, 1)
    found = scan(*single)
    weight = torch.randn(B, L, D, generator=g)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert relative_rms(found.detach(), wanted.detach()) < 1e-6
    for a, b in zip(single, double):
        assert relative_rms(a.grad, b.grad) < 1e-6


def test_exported_checkpoint_is_the_trained_model(tmp_path, relative_rms):
    from train_demo import export
    from train_model import MambaLM, Shape

    from longscan.runtime import load

    torch.manual_seed(0)
    model = MambaLM(Shape(d_model=32, n_layer=2)).half().float()  # what float16 on disk can hold
    export(model, tmp_path)
    ids = torch.randint(0, 256, (2, 40))
    lm = load(tmp_path)
    with torch.no_grad():
        assert relative_rms(lm.prefill(ids, logits_to_keep=0).logits, model(ids)) < 1e-3
    assert lm.config.train_length == 256


def test_samples_mark_what_can_be_known():
    from train_data import ANSWER, LEVELS, NONE, recall_batch

    ids, marks = recall_batch(random.Random(0), 5, 8)
    assert ids.shape == (8, LEVELS[5][3])
    for row, mark in zip(ids, marks):
        text = bytes(row.tolist()).decode()
        said = "".join(c for c, m in zip(text, mark.tolist()) if m == ANSWER)
        first = "".join(c for c, m in zip(text, mark.tolist()) if m == NONE)
        assert said and said[:1] in first  # every answer was seen before it is asked for
