"""mamba_ssm's own models on a CPU: an empty module stands in for its CUDA extension, its references compute."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from longscan.runtime import attach, detach, load

from ...checkpoints import make_sidecar
from ...mamba_ssm_peer import importable
from .models import lively

pytestmark = pytest.mark.skipif(find_spec("mamba_ssm") is None, reason="needs mamba_ssm")


@pytest.fixture(scope="module")
def mamba_ssm():
    """The library, imported for this file alone."""
    with importable() as library:
        yield library


class NoEvent:
    """What its generate times itself with on a GPU."""

    def __init__(self, **_):
        pass

    def record(self):
        pass


def make(mamba_ssm, **ssm_cfg):
    from mamba_ssm.models.config_mamba import MambaConfig

    torch.manual_seed(0)
    config = MambaConfig(
        d_model=24, n_layer=3, vocab_size=64, ssm_cfg={"d_state": 8, **ssm_cfg}, rms_norm=False, fused_add_norm=False
    )
    return lively(mamba_ssm.MambaLMHeadModel(config))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 64, (2, 64), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", params=["Mamba1", "Mamba2"])
def pair(request, mamba_ssm, tmp_path_factory):
    """The model, and its checkpoint in the runtime with a sidecar."""
    more = {"headdim": 8, "ngroups": 2, "dt_limit": (0.004, 0.5)} if request.param == "Mamba2" else {}
    peer, folder = make(mamba_ssm, layer=request.param, **more), tmp_path_factory.mktemp("mamba")
    peer.save_pretrained(folder)
    return peer, load(folder, make_sidecar(load(folder)))


@torch.no_grad()
def test_plain_mamba_is_the_librarys_reference(mamba_ssm, ids, monkeypatch, relative_rms):
    peer = make(mamba_ssm)
    from mamba_ssm.modules import mamba_simple
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    monkeypatch.setattr(mamba_simple, "selective_scan_fn", selective_scan_ref)
    wanted = peer(ids).logits
    with attach(peer):
        assert relative_rms(peer(ids).logits, wanted) < 1e-4
    assert torch.equal(peer(ids).logits, wanted)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"norm_before_gate": True}, {"rmsnorm": False}, {"D_has_hdim": True}])
def test_plain_mamba2_is_the_librarys_reference(mamba_ssm, ids, options, monkeypatch, relative_rms):
    from mamba_ssm.modules import mamba2
    from mamba_ssm.ops import selective_scan_interface
    from mamba_ssm.ops.triton import ssd_combined
    from mamba_ssm.ops.triton.layernorm_gated import rms_norm_ref

    options |= {"headdim": 8, "ngroups": 2, "dt_limit": (0.004, 0.5), "use_mem_eff_path": False}
    peer = make(mamba_ssm, layer="Mamba2", **options)

    def scan(x, dt, A, B, C, chunk_size, D, z, return_final_states, seq_idx, cu_seqlens, return_varlen_states, **rest):
        return ssd_combined.ssd_selective_scan(x, dt, A, B, C, D=D, z=z, **rest)

    def norm(self, y, z):
        return rms_norm_ref(y, self.weight, None, z, self.eps, self.group_size, self.norm_before_gate)

    monkeypatch.setattr(selective_scan_interface, "selective_scan_fn", selective_scan_interface.selective_scan_ref)
    monkeypatch.setattr(mamba2, "mamba_chunk_scan_combined", scan)
    monkeypatch.setattr(mamba2.RMSNormGated, "forward", norm)
    wanted = peer(ids).logits
    with attach(peer):
        assert relative_rms(peer(ids).logits, wanted) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("method", ["none", "filter", "decimate", "both"])
def test_every_method_equals_the_runtime(pair, ids, method, relative_rms):
    peer, lm = pair
    wanted = lm.prefill(ids, method=method, logits_to_keep=0)
    with attach(peer, lm.sidecar, method=method) as attached:
        found = peer(ids).logits
        assert attached.plan == wanted.plan and torch.equal(attached.positions, wanted.positions)
        last = peer(ids, num_last_tokens=5).logits
    assert found.shape == wanted.logits.shape and relative_rms(found, wanted.logits) < 1e-4
    assert relative_rms(last, lm.prefill(ids, method=method, logits_to_keep=5).logits) < 1e-4


@pytest.mark.parametrize("method", ["none", "filter", "both"])
def test_generate_is_the_runtimes(pair, ids, method, monkeypatch):
    peer, lm = pair
    monkeypatch.setattr(torch.cuda, "Event", NoEvent)
    wanted = [list(lm.generate(row, 24, method=method)) for row in ids]
    attach(peer, lm.sidecar, method=method)
    found = peer.generate(ids, max_length=64 + 24)
    detach(peer)
    assert found[:, 64:].tolist() == wanted


@torch.no_grad()
@pytest.mark.parametrize("layer", ["Mamba1", "Mamba2"])
def test_chunks_go_on_from_the_state(mamba_ssm, ids, layer, relative_rms):
    from mamba_ssm.utils.generation import InferenceParams

    peer = make(mamba_ssm, layer=layer, **({"headdim": 8} if layer == "Mamba2" else {}))
    with attach(peer):
        wanted = peer(ids).logits
        for allocated in (False, True):
            params = InferenceParams(max_seqlen=64, max_batch_size=2)
            if allocated:
                params.key_value_memory_dict = peer.allocate_inference_cache(2, 64)
            found = []
            for piece in ids.split([19, 1, 30, 14], dim=1):
                found.append(peer(piece, inference_params=params).logits)
                params.seqlen_offset += piece.shape[1]
            assert relative_rms(torch.cat(found, 1), wanted) < 1e-4


def test_what_cannot_be_read_is_refused(mamba_ssm, pair, ids):
    from mamba_ssm.models.config_mamba import MambaConfig

    for layer in ("Mamba1", "Mamba2"):  # the second is state-spaces/mamba2attn-2.7b
        heads = {"headdim": 8} if layer == "Mamba2" else {}
        hybrid = MambaConfig(
            d_model=16, n_layer=2, vocab_size=64, ssm_cfg={"layer": layer, **heads},
            attn_layer_idx=[1], attn_cfg={"num_heads": 2}, rms_norm=False, fused_add_norm=False,
        )  # fmt: skip
        with pytest.raises(ValueError, match="attention layers"):
            attach(mamba_ssm.MambaLMHeadModel(hybrid))
    with pytest.raises(ValueError, match="d_ssm"):
        attach(make(mamba_ssm, layer="Mamba2", headdim=8, d_ssm=24))
    peer, _ = pair
    with attach(peer), pytest.raises(ValueError, match="packed sequences"):
        peer(ids, seq_idx=torch.zeros_like(ids))
