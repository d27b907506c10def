"""`calibrate run` end to end on tiny random Mamba-2 and Falcon-Mamba folders; channels of Mamba-2 are heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from longscan.calibrate.commands import cli
from longscan.calibrate.measure.measuring import Measure, log_decay
from longscan.calibrate.measure.published_fit import clamp_top
from longscan.runtime import Sidecar, load
from longscan.runtime.checkpoint.source import BUNDLED

from ..checkpoints import MAMBA2, random_mamba2_tensors, random_tensors, write_falcon, write_state_spaces

DEMO_TEXT = Path(__file__).parents[2] / "calibrate" / "demo" / "calibration.txt"


@pytest.fixture(scope="module", params=["mamba2", "falcon"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "mamba2":
        tensors = random_mamba2_tensors(M=16, n_layer=2, V=256)
        write_state_spaces(path, tensors, pickled=True, ssm_cfg=MAMBA2)
    else:
        write_falcon(path, random_tensors(M=16, n_layer=2, V=256, N=16))
    shutil.copy(BUNDLED["demo"] / "tokenizer.json", path)
    (path / "novel.txt").write_text(DEMO_TEXT.read_text()[:60000])
    return path


def call(*arguments):
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("recipe", ["default", "paper-longmamba"])
def test_a_sidecar_is_made_loaded_and_used(folder, recipe, tmp_path):
    out = tmp_path / "one.longscan.safetensors"
    texts = ("--texts", folder / "novel.txt", "--train-length", 64)
    run = ("run", "--model", folder, *texts, "--recipe", recipe, "--lengths", "128,256", "--samples", 4)
    document = json.loads(call(*run, "--out", out, "--json").stdout)
    assert document["sidecar"] == str(out)
    side, plain = Sidecar.read(out), load(folder)
    channels = 4 if "mamba2" in folder.name else 32
    assert int(side.metadata["channels"]) == channels == plain.weights.channels
    lm = load(folder, out)
    ids = torch.randint(0, 256, (1, 256))
    assert torch.isfinite(lm.prefill(ids).logits).all()
    if recipe == "paper-longmamba":  # forced without a search, so surely something is filtered
        assert lm.prefill(ids).plan.method == "filter"
        assert side.bands[0].g_fit == "published"


def test_the_published_decay_of_a_head_is_taken_after_the_clamp(tmp_path):
    lm = load(write_state_spaces(tmp_path, random_mamba2_tensors(), ssm_cfg=MAMBA2))
    ids = torch.randint(0, 64, (1, 40))
    published, plain = Measure(lm, 1, 40, ([80], 0.2)), Measure(lm, 1, 40)
    seen = []

    class Both:
        def observe(self, layer, inputs):
            seen.append(inputs.weights.positive(inputs.delta[0]))
            published.observe(layer, inputs)
            plain.observe(layer, inputs)

    lm.prefill(ids, method="none", observer=Both())
    for i, (layer, delta) in enumerate(zip(lm.weights.layers, seen)):
        torch.testing.assert_close(published.layers[i].log_decay[0], log_decay(clamp_top(delta, 0.2), layer.A))
        torch.testing.assert_close(plain.layers[i].log_decay[0], log_decay(delta, layer.A))
        assert (published.layers[i].log_decay > plain.layers[i].log_decay).all()
