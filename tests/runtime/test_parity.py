"""Plain logits against transformers' own implementation, over the configurations the checkpoints come in."""

from __future__ import annotations

import pytest
import torch

from longscan.runtime import load

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("tied", "bias", "conv_bias", "N", "M"),
    [
        (True, False, True, 16, 48),
        (False, True, True, 8, 37),
        (True, True, False, 16, 33),
        (False, False, False, 8, 64),
    ],
)
@pytest.mark.parametrize("shards", [False, True])
def test_logits_agree_with_transformers(tmp_path, tied, bias, conv_bias, N, M, shards, relative_rms):
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=101, hidden_size=M, state_size=N, num_hidden_layers=3, use_bias=bias, use_conv_bias=conv_bias,
        tie_word_embeddings=tied,
    )  # fmt: skip
    peer = transformers.MambaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    peer.save_pretrained(tmp_path, max_shard_size="40KB" if shards else "5GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == shards
    ids = torch.randint(0, 101, (2, 77))
    with torch.no_grad():
        wanted = peer(ids).logits
    out = load(tmp_path).prefill(ids, logits_to_keep=0)
    assert out.logits.dtype == torch.float32
    assert relative_rms(out.logits, wanted) < 1e-4
    assert out.positions.tolist() == [list(range(77))] * 2
