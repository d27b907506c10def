"""What an engine is told of a sidecar, and how it finds its layers in the checkpoint."""

from __future__ import annotations

import math

import pytest
import torch

from longscan.engines.band import SKIP, cuts_at, stored_layers, which_layer
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_value_that_is_set_has_no_delta(dtype):
    raw = torch.tensor([SKIP]).to(dtype).float() + torch.tensor([100.0])
    assert torch.nn.functional.softplus(raw).item() == 0
    assert torch.log(torch.exp(raw) + 1).item() == 0  # as some engines write it
