"""Reading checkpoints: every layout gives the same model, every damage one clear line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from longscan.runtime import CheckpointError, load

from ..checkpoints import random_tensors, write_state_spaces

TENSORS = random_tensors()


def test_layouts_give_the_same_model_and_fingerprint(tmp_path, plain, ids):
    pickled = load(write_state_spaces(tmp_path / "bin", TENSORS, pickled=True))
    folder = tmp_path / "sharded"
    folder.mkdir()
    hf = {("backbone.embeddings.weight" if k == "backbone.embedding.weight" else k): v for k, v in TENSORS.items()}
    names = sorted(hf)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: hf[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "mamba", "hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 64, "state_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    sharded = load(folder)
    wanted = plain.prefill(ids).logits
    for other in (pickled, sharded):
        assert torch.equal(other.prefill(ids).logits, wanted)
        assert other.fingerprint == plain.fingerprint
    other = load(write_state_spaces(tmp_path / "other", random_tensors(seed=1)))
    assert other.fingerprint != plain.fingerprint


class _Trap:
    def __reduce__(self):
        return (print, ("executed",))


def _damage(tmp_path, what):
    folder = write_state_spaces(tmp_path, dict(TENSORS))
    weights = folder / "model.safetensors"
    if what == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "empty":
        weights.write_bytes(b"")
    elif what == "nan":
        broken = {**TENSORS, "backbone.layers.1.mixer.D": torch.full((48,), torch.nan)}
        save_file(broken, weights)
    elif what == "missing":
        save_file({k: v for k, v in TENSORS.items() if "layers.2.mixer.A_log" not in k}, weights)
    elif what == "shape":
        save_file({**TENSORS, "backbone.norm_f.weight": torch.ones(7)}, weights)
    elif what == "unknown":
        save_file({**TENSORS, "backbone.layers.0.mixer.lora": torch.ones(7)}, weights)
    elif what == "no weights":
        weights.unlink()
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "bad config":
        (folder / "config.json").write_text("{")
    elif what == "mamba-2":
        write_state_spaces(tmp_path, TENSORS, ssm_cfg={"layer": "Mamba2"})
    elif what == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": _Trap()}))
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "download it again"),
        ("empty", "download it again"),
        ("nan", "layers.1.mixer.D.*NaN"),
        ("missing", "layers.2.mixer.A_log"),
        ("shape", "norm_f.weight.*expected"),
        ("unknown", "lora"),
        ("no weights", "neither"),
        ("no config", "config.json"),
        ("bad config", "JSON"),
        ("mamba-2", "A_log has shape.*config.json and weights differ"),
        ("pickle", "weights_only"),
    ],
)
def test_damage_is_one_clear_line(tmp_path, what, message, capsys):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(_damage(tmp_path, what))
    assert "\n" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["/nowhere/at/all", "no-such-model", "./missing"])
def test_no_such_model(name):
    with pytest.raises(CheckpointError, match="give"):
        load(name)


def test_the_hub_offline_is_one_clear_line():
    with pytest.raises(CheckpointError, match="cannot fetch state-spaces/mamba-130m"):
        load("state-spaces/mamba-130m")


def test_import_is_light():
    code = (
        "import sys, time, torch; t = time.perf_counter(); import longscan.runtime; "
        "print(time.perf_counter() - t, 'triton' in sys.modules and 'torch._inductor' not in sys.modules, "
        "'numba' in sys.modules, 'click' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[1:] == ["False"] * 3, out
