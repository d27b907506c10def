"""Codestral-Mamba's kind (a Mamba-2 of transformers with 8 groups, a head of its own and a tokenizer that falls back to
bytes), and state-spaces' mamba2attn, whose attention layers are refused."""

from __future__ import annotations

import json

import pytest
import torch

from longscan.runtime import CheckpointError, attach, load

from ...checkpoints import make_sidecar, random_mamba2_tensors, write_state_spaces
from ...tokenizer_kinds import byte_fallback
from .models import lively

transformers = pytest.importorskip("transformers")

PROMPT = "Hello world, café – the quick brown fox stops over 12 dogs"


@pytest.fixture(scope="module")
def codestral(tmp_path_factory):
    """The model, its folder in the published layout, its tokenizer, and the same in the runtime with a sidecar."""
    folder = tmp_path_factory.mktemp("codestral")
    tokenizer = byte_fallback()
    config = transformers.Mamba2Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, state_size=8, num_hidden_layers=3, num_heads=16,
        head_dim=4, n_groups=8, chunk_size=16, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = lively(transformers.Mamba2ForCausalLM(config))
    peer.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "config.json"
    said = json.loads(path.read_text())  # what its maker's says besides, of code of long ago
    path.write_text(json.dumps({**said, "norm_before_gate": True, "rms_norm": True, "time_step_rank": 256}))
    (folder / "consolidated.safetensors").write_bytes(b"the same weights, by other names")
    return peer, folder, tokenizer, load(folder, make_sidecar(load(folder)))


@torch.no_grad()
def test_it_loads_and_agrees(codestral, relative_rms):
    peer, folder, tokenizer, _ = codestral
    assert not torch.equal(peer.lm_head.weight, peer.backbone.embeddings.weight)
    ids = torch.tensor([tokenizer.encode(PROMPT).ids])
    plain = load(folder)
    assert relative_rms(plain.prefill(ids, logits_to_keep=0).logits, peer(ids).logits) < 1e-5
    assert relative_rms(plain.prefill(ids, chunk=7).logits[:, -1], peer(ids).logits[:, -1]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("method", ["none", "filter", "both"])
def test_attached_it_is_the_runtimes(codestral, method, relative_rms):
    peer, _, tokenizer, lm = codestral
    ids = torch.tensor([tokenizer.encode(PROMPT).ids])
    wanted = lm.prefill(ids, method=method, logits_to_keep=0)
    with attach(peer, lm.sidecar, method=method):
        found = peer(ids).logits
    assert relative_rms(found, wanted.logits) < 1e-4
    if method != "none":
        assert relative_rms(found[:, -1], peer(ids).logits[:, -1]) > 1e-3


def test_its_text_is_the_tokenizers(codestral):
    """Bytes that make no character wait for the next; the space before a text is not lost between tokens."""
    peer, _, tokenizer, lm = codestral
    ids = tokenizer.encode(PROMPT).ids
    assert any(token.startswith("<0x") for token in tokenizer.encode(PROMPT).tokens)
    with attach(peer, lm.sidecar, method="filter"):
        found = peer.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)[0].tolist()
    assert list(lm.generate(ids, 24, method="filter")) == [one for one in found[len(ids) :] if one != 2]
    text = "".join(lm.generate(PROMPT, 24, method="filter"))
    whole = tokenizer.decode([one for one in found if one != 2])
    assert tokenizer.decode(ids) + text == whole and text


def test_attention_layers_of_mamba2attn_are_refused(tmp_path):
    """Its config.json as published, with fewer layers; in memory it is refused in test_mamba_ssm.py."""
    attention = {
        "causal": True, "d_conv": 4, "head_dim": 128, "num_heads": 30, "out_proj_bias": False, "qkv_proj_bias": False,
        "rotary_emb_dim": 64,
    }  # fmt: skip
    folder = write_state_spaces(
        tmp_path, random_mamba2_tensors(), ssm_cfg={"layer": "Mamba2"}, attn_layer_idx=[1], attn_cfg=attention,
        d_intermediate=0, pad_vocab_size_multiple=16,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="attention"):
        load(folder)
