"""Hybrids with attention, calibrated, evaluated and continued from the command line, read through transformers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.runtime import Sidecar, attach, load
from longscan.runtime.checkpoint.source import BUNDLED

from ..runtime.attach.models import HYBRIDS, build, publish
from .conftest import DEMO_TEXT

transformers = pytest.importorskip("transformers")

RECIPE = """\
samples: 2
length_factors: [4]
objective: perplexity
measure: {windows: 4, kept: 8, batch_tokens: 256}
filter: {theta: [1.0e-2], theta_quantiles: [0.5], mass: {law: [0.5]}, layers: all, g_fit: auto}
scale: {search: true, powers: [0.5], top: [0.2]}
"""


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module", params=HYBRIDS)
def folder(request, tmp_path_factory):
    """A model over bytes, its recipe and a text."""
    folder = publish(build(request.param, vocab_size=256), tmp_path_factory.mktemp(f"tiny-{request.param}"))
    shutil.copy(BUNDLED["demo"] / "tokenizer.json", folder)
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "novel.txt").write_text(DEMO_TEXT.read_text()[:20000])
    return folder


@pytest.fixture(scope="module")
def run(folder):
    given = {"--model": folder, "--texts": folder / "novel.txt", "--recipe": folder / "tiny.yaml", "--train-length": 64}
    return ["run", *(part for pair in given.items() for part in pair)]


@pytest.fixture(scope="module")
def calibrated(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "hybrid.longscan.safetensors"
    return out, json.loads(call(*run, "--out", out, "--json").stdout)


def test_its_sidecar_filters_and_never_decimates(calibrated, folder):
    out, document = calibrated
    side = Sidecar.read(out)
    lm = load(folder)
    rows = {row["method"]: row for row in document["scores"]}
    stretched = {name: row["rotary"] for name, row in rows.items() if name.endswith("+yarn")}
    assert set(rows) - set(stretched) == {"none", "filter", "scale"}
    assert lm.rotary == (folder.name.split("-")[1][:-1] in ("bamba", "falcon_h1", "zamba2"))
    assert len(stretched) == lm.rotary and set(stretched.values()) <= {2.0, 4.0, 8.0}  # S/L is 4
    weights = lm.weights  # Mamba layers; heads, or Mamba-1's channels
    assert (side.metadata["n_layer"], side.metadata["channels"]) == (str(len(weights.layers)), str(weights.channels))
    assert side.plan(256, "filter").method == "filter" and not side.plan(256).decimate
    assert any((side.thresholds(layer, 256) > 0).any() for layer in range(len(weights.layers)))
    assert not any("keep" in name for name in side.tensors)


def test_spread_by_accelerate_it_is_calibrated_alike(calibrated, folder, run, tmp_path):
    """Over the devices there are: here one."""
    pytest.importorskip("accelerate")
    out = tmp_path / "spread.longscan.safetensors"
    call(*run, "--device", "spread", "--out", out)
    one, other = Sidecar.read(calibrated[0]), Sidecar.read(out)
    assert one.tensors.keys() == other.tensors.keys() and one.metadata["policy"] == other.metadata["policy"]
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_the_sidecar_serves_the_model_in_memory(calibrated, folder):
    out, _ = calibrated
    ids = torch.randint(0, 256, (1, 200))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad(), attach(model, out, method="filter"):
        found = model(ids).logits[:, -1:]
    assert torch.allclose(found, load(folder, out).prefill(ids, method="filter").logits, atol=1e-4)


def test_eval_and_generate_take_it(calibrated, folder):
    out, _ = calibrated
    place = ("--model", folder, "--sidecar", out)
    text = ("--texts", folder / "novel.txt", "--windows", 2, "--lengths", "64,256", "--json")
    rows = json.loads(call("eval", *place, *text).stdout)["rows"]
    assert {row["method"] for row in rows} == {"none", "filter", "scale", "auto"} and len(rows) == 8
    call("generate", *place, "--prompt", "It was a dark and stormy night " * 4, "--max-new-tokens", 4)


def test_a_sequential_fit_is_refused_before_any_work(run, folder, tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE.replace("g_fit: auto", "g_fit: sequential"))
    result = call(*run, "--recipe", tmp_path / "mine.yaml", "--out", tmp_path / "no.safetensors", code=1)
    assert "filter.g_fit sequential" in result.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.yaml"]


def test_decimation_is_refused_before_any_work(run, tmp_path):
    for method in ("decimate", "both"):
        result = call(*run, "--method", method, "--out", tmp_path / "no.safetensors", code=1)
        assert "cannot be decimated" in result.stderr.strip().splitlines()[-1]
