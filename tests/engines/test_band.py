"""What an engine is told of a sidecar, and how it finds its layers in the checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from longscan.engines.band import SKIP, check_limit, cuts_at, stored_layers, which_layer
from longscan.kernels import raw_delta_cut
from longscan.runtime import CheckpointError, SidecarError, load

from ..checkpoints import make_sidecar
from ..runtime.attach.models import FAMILIES, build


@pytest.fixture(scope="module")
def demo():
    return load("demo-mamba2")


@pytest.mark.parametrize("name", ["demo", "demo-mamba2"])
def test_the_fingerprint_is_loads(name):
    layers, found = stored_layers(name)
    weights = load(name).weights
    assert found == weights.fingerprint
    assert [len(layer.bias) for layer in layers] == [weights.channels] * len(weights.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fingerprint_of_transformers_checkpoints(family, tmp_path):
    """Hybrids number their Mamba layers among others; they are counted alone, as in a sidecar."""
    pytest.importorskip("transformers")
    build(family).save_pretrained(tmp_path)
    layers, found = stored_layers(str(tmp_path))
    weights = load(tmp_path).weights
    assert found == weights.fingerprint
    for layer, ours in zip(layers, weights.layers, strict=True):
        assert torch.equal(layer.bias.float(), ours.dt_bias)
        assert torch.allclose(-torch.exp(layer.A_log.float()), ours.A)


@pytest.mark.parametrize("name", ["demo", "demo-mamba2"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_layer_is_known_by_what_it_holds(name, ranks):
    layers, _ = stored_layers(name)
    for k, layer in enumerate(layers):
        A, bias = -torch.exp(layer.A_log.float()), layer.bias.to(torch.bfloat16)
        for rank, (a, b) in enumerate(zip(A.chunk(ranks), bias.chunk(ranks))):
            assert which_layer(layers, a * (1 + 1e-7), b, rank, ranks) == k


def test_other_weights_are_refused():
    layers, _ = stored_layers("demo-mamba2")
    A, bias = -torch.exp(layers[0].A_log), layers[0].bias
    with pytest.raises(CheckpointError, match="no Mamba layer of the checkpoint has the A"):
        which_layer(layers, A, bias + 0.01)
    with pytest.raises(CheckpointError, match="no Mamba layer"):
        which_layer(layers, A * 1.001, bias)
    with pytest.raises(CheckpointError, match="no Mamba layer"):
        which_layer(layers, A[: len(A) // 2], bias[: len(A) // 2])  # half of the channels, said to be all
    with pytest.raises(CheckpointError, match="more than one"):
        which_layer([layers[0], layers[0]], A, bias)


def test_a_checkpoint_without_mamba_layers_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"model.embed_tokens.weight": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="found no Mamba layers"):
        stored_layers(str(tmp_path))


def test_cuts_are_those_of_the_sidecars_thresholds(demo):
    side = make_sidecar(demo)
    cuts = cuts_at(side, 4 * side.train_length)
    for layer, cut in enumerate(cuts):
        assert torch.equal(cut, raw_delta_cut(side.thresholds(layer, 4 * side.train_length)))
    assert (cuts[:, ::2] == -math.inf).all() and (cuts[:, 1::2] > -math.inf).all()


def test_what_an_engine_cannot_follow_is_refused(demo):
    side = make_sidecar(demo)
    with pytest.raises(ValueError, match="nothing is filtered at 10 tokens"):
        cuts_at(side, 10)
    with pytest.raises(SidecarError, match="filter_decode: false"):
        cuts_at(make_sidecar(demo, filter_decode=False), 4 * side.train_length)


def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"model_type": "mamba2", "time_step_limit": [0.0, math.inf]}, False),
        ({"model_type": "mamba2", "time_step_limit": [0.001, {"__float__": "Infinity"}]}, False),  # below every g
        ({"model_type": "mamba2", "time_step_limit": [0.01, 1.0]}, True),
        ({"model_type": "mamba2", "time_step_limit": [0.0, 0.01]}, True),
        ({"d_model": 64, "ssm_cfg": {"layer": "Mamba2", "dt_limit": [0.01, 1.0]}}, True),
        ({"model_type": "nemotron_h", "time_step_min": 0.01}, False),
        ({"model_type": "nemotron_h", "mamba_dt_limit": [0.01, 1.0]}, True),
        ({"model_type": "zamba2", "time_step_min": 0.01, "time_step_limit": None}, False),
    ],
)
def test_limits_that_change_what_is_dropped_are_refused(demo, tmp_path, config, refused):
    """Engines leave a model's limits of delta out; only where g lies within them are the same tokens dropped."""
    side, length = make_sidecar(demo), 4 * 16
    g = torch.stack([side.thresholds(k, length) for k in range(int(side.metadata["n_layer"]))])
    table = side.tensors["bands.0.thresholds"]  # (lengths, layers, channels): every g that is not 0 in 0.002 ... 0.02
    moved = torch.where(table > 0, 0.002 + table * 0.018 / table.max(), table)
    side = replace(side, tensors={**side.tensors, "bands.0.thresholds": moved})
    assert (g > 0).any()
    folder = write_config(tmp_path, **config)
    if refused:
        with pytest.raises(ValueError, match=r"limits delta to \(.*, which this engine does not: with the sidecar's g"):
            check_limit(side, length, folder)
    else:
        check_limit(side, length, folder)


@pytest.mark.parametrize("low", [0.0, 0.02])
def test_a_floor_below_g_drops_what_the_cut_drops(low):
    """And one above it does not: our runtime then drops nothing."""
    g = torch.tensor([0.01])
    raw = torch.linspace(-8, 0, 400)[:, None]
    ours = torch.nn.functional.softplus(raw).clamp(min=low) <= g
    same = torch.equal(ours, raw <= raw_delta_cut(g))
    assert same == (low < 0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_value_that_is_set_has_no_delta(dtype):
    raw = torch.tensor([SKIP]).to(dtype).float() + torch.tensor([100.0])
    assert torch.nn.functional.softplus(raw).item() == 0
    assert torch.log(torch.exp(raw) + 1).item() == 0  # as some engines write it
