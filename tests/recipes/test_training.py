"""The training recipe: the scans' gradients, and that what it exports is the model it trained."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from ..mamba_ssm_peer import importable

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(autouse=True)
def _recipes_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    yield
    for name in (*(path.stem for path in RECIPES.glob("train_*.py")), "ladder"):
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


@pytest.mark.parametrize("length", [16, 45])
def test_ssd_and_its_gradients_equal_the_recurrence(relative_rms, length):
    from train_ssd import ssd

    g = torch.Generator().manual_seed(0)
    B, H, P, N = 2, 3, 4, 5
    given = [
        torch.randn(B, length, H, P, generator=g),
        torch.rand(B, length, H, generator=g) * 2,
        -torch.rand(H, generator=g) * 16,
        torch.randn(B, length, N, generator=g),
        torch.randn(B, length, N, generator=g),
    ]
    single = [t.clone().requires_grad_() for t in given]
    double = [t.double().requires_grad_() for t in given]
    x, delta, A, B_, C = double
    h, ys = torch.zeros(B, H, P, N, dtype=torch.float64), []
    for t in range(length):
        step = (delta[:, t, :, None] * x[:, t])[..., None] * B_[:, t, None, None]
        h = torch.exp(delta[:, t] * A)[..., None, None] * h + step
        ys.append((h * C[:, t, None, None]).sum(-1))
    wanted = torch.stack(ys, 1)
    found = ssd(*single)
    weight = torch.randn(B, length, H, P, generator=g)
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert relative_rms(found.detach(), wanted.detach()) < 1e-6
    for a, b in zip(single, double):
        assert relative_rms(a.grad, b.grad) < 5e-5  # A's is a sum of large terms that cancel


def exported_mamba2(folder):
    """A small random Mamba-2 that float16 on disk can hold, and its checkpoint in `folder`."""
    from train_demo import export
    from train_mamba2 import Shape2
    from train_model import MambaLM
    from train_vocabulary import Bytes

    torch.manual_seed(0)
    model = MambaLM(Shape2(d_model=32, n_layer=2)).half().float()
    export(model, folder, Bytes())
    return model


def test_exported_mamba2_in_transformers(tmp_path, relative_rms):
    from safetensors.torch import load_file
    from transformers import Mamba2Config, Mamba2ForCausalLM

    model = exported_mamba2(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    ssm = config["ssm_cfg"]
    theirs = Mamba2ForCausalLM(
        Mamba2Config(
            hidden_size=config["d_model"],
            num_hidden_layers=config["n_layer"],
            vocab_size=config["vocab_size"],
            state_size=ssm["d_state"],
            conv_kernel=ssm["d_conv"],
            expand=ssm["expand"],
            head_dim=ssm["headdim"],
            num_heads=config["d_model"] * ssm["expand"] // ssm["headdim"],
            n_groups=ssm["ngroups"],
            tie_word_embeddings=True,
            chunk_size=16,
        )
    ).eval()
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["backbone.embeddings.weight"] = tensors.pop("backbone.embedding.weight")
    missing, unexpected = theirs.load_state_dict({n: t.float() for n, t in tensors.items()}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    ids = torch.randint(0, 256, (2, 45))
    with torch.no_grad():
        assert relative_rms(model(ids), theirs(ids).logits) < 1e-4


def test_exported_mamba2_has_the_names_and_shapes_of_mamba_ssm(tmp_path):
    from safetensors.torch import load_file

    exported_mamba2(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["train_length"]  # ours
    with importable():
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

        theirs = MambaLMHeadModel(MambaConfig(**config), device="cpu").state_dict()
    ours = load_file(tmp_path / "model.safetensors")
    assert theirs.pop("lm_head.weight").shape == ours["backbone.embedding.weight"].shape  # tied
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_exported_checkpoint_is_the_trained_model(tmp_path, relative_rms):
    from train_demo import export
    from train_model import MambaLM, Shape
    from train_vocabulary import Bytes

    from longscan.runtime import load

    torch.manual_seed(0)
    model = MambaLM(Shape(d_model=32, n_layer=2)).half().float()  # what float16 on disk can hold
    export(model, tmp_path, Bytes())
    ids = torch.randint(0, 256, (2, 40))
    lm = load(tmp_path)
    with torch.no_grad():
        assert relative_rms(lm.prefill(ids, logits_to_keep=0).logits, model(ids)) < 1e-3
    assert lm.config.train_length == 256


def test_samples_mark_what_can_be_known():
    from train_data import ANSWER, LEVELS, NONE, recall_samples
    from train_vocabulary import Bytes

    ids, marks = Bytes().batch(recall_samples(random.Random(0), 5, 8), LEVELS[5][3], 256)
    assert ids.shape == (8, LEVELS[5][3])
    for row, mark in zip(ids, marks):
        text = bytes(row.tolist()).decode()
        said = "".join(c for c, m in zip(text, mark.tolist()) if m == ANSWER)
        first = "".join(c for c, m in zip(text, mark.tolist()) if m == NONE)
        assert said and said[:1] in first  # every answer was seen before it is asked for


def test_a_rung_goes_on_where_it_was_cut_and_its_subwords_load(tmp_path, monkeypatch):
    import train_demo
    from train_data import ANSWER, Corpus, passkey

    from longscan.runtime import load

    words = b"It was the best of times, it was the worst of times, in the year 1775. "
    (tmp_path / "texts" / "austen").mkdir(parents=True)
    (tmp_path / "texts" / "sotu").mkdir()
    for name in ("kjv", "austen/emma", "austen/persuasion", "sotu/1790"):
        (tmp_path / "texts" / f"{name}.txt").write_bytes(words * 300)
    monkeypatch.setattr(train_demo, "LEVELS", ())
    monkeypatch.setattr(train_demo, "ROWS", 2)

    def train(work):
        line = ["--rung", "mamba-0.05m", "--layers", "1", "--length", "128", "--vocabulary", "280"]
        line += ["--texts", str(tmp_path / "texts"), "--work", str(work), "--steps", "60"]
        monkeypatch.setattr(sys, "argv", ["train_demo.py", *line, "--export", str(work / "model")])
        train_demo.main()

    def cut(run, loss):
        if run.step == 55:
            raise KeyboardInterrupt
        update(run, loss)

    train(tmp_path / "whole")
    update = train_demo.Run.update
    monkeypatch.setattr(train_demo.Run, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts")
    monkeypatch.setattr(train_demo.Run, "update", update)
    train(tmp_path / "parts")
    whole, parts = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts

    lm = load(tmp_path / "parts" / "model")
    assert (lm.config.train_length, len(lm.weights.embedding), len(lm.weights.layers)) == (128, 280, 1)
    vocabulary = train_demo.Subwords.read(tmp_path / "parts" / "tokenizer.json", [words], 280)
    sample = passkey(random.Random(1), Corpus.read(tmp_path / "texts"), 400, 400)
    ids, marks = vocabulary.batch([sample], 400, 400)
    said = [i for i, mark in zip(ids[0].tolist(), marks[0].tolist()) if mark == ANSWER]
    assert lm.tokenizer.decode(said) == b"".join(part for part, mark in sample if mark == ANSWER).decode()


@pytest.mark.parametrize("several", [False, True])
def test_prompts_in_rulers_wording_fit_and_hold_their_answer(several):
    from train_data import ANSWER, NONE
    from train_ruler import FILLER, prompt

    rng, known = random.Random(0), ["green", "stick", "tasty", "update", "gold"]
    sizes, counts = [], []
    for _ in range(40):
        sample = prompt(rng, known, 1024, several=several)
        joined = b"".join(part for part, _ in sample).decode()
        asked, said = sample[-2][0].decode(), sample[-1][0].decode()
        key = asked.split(" for ")[1].split(" mentioned")[0]
        lines = joined.split("\n")
        assert sample[-1][1] == ANSWER and said[1:].isdigit() and len(said) == 8
        assert joined.endswith(asked + said)
        assert f"One of the special magic numbers for {key} is: {said[1:]}." in lines
        assert any(part == said[1:].encode() and mark == NONE for part, mark in sample)  # a first sight is no loss
        assert (FILLER in lines) <= (not several)
        counts.append(joined.count("One of the special"))
        sizes.append(len(joined))
    assert 900 < max(sizes) <= 1024 and min(sizes) < 600
    assert max(counts) > 5 if several else max(counts) == 1
