"""Models spread over devices by accelerate, and those whose weights lie elsewhere than where their layers run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from longscan.runtime import attach, detach, load
from longscan.runtime.reading.plans import layer_plans

from ...checkpoints import make_sidecar
from .models import FAMILIES, build

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 64, (2, 64), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def accelerate():
    return pytest.importorskip("accelerate")


def spread(accelerate, model):
    """Over two entries of a device map, of which this machine has one device."""
    stack = "backbone" if hasattr(model, "backbone") else "model"
    layers = {f"{stack}.layers.{i}": "cpu" for i in range(len(getattr(model, stack).layers))}
    rest = {f"{stack}.{name}": "cpu" for name, _ in getattr(model, stack).named_children() if name != "layers"}
    return accelerate.dispatch_model(
        model, {**layers, **rest, "lm_head": "cpu"}, force_hooks=True, skip_keys=model._skip_keys_device_placement
    )


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_accelerates_hooks_stay_where_they_are(name, ids, tmp_path, accelerate, relative_rms):
    """They bring the inputs to a layer's device, and are called as often as without the filter."""
    model = build(name)
    model.save_pretrained(tmp_path)
    side, method = make_sidecar(load(tmp_path)), "both" if name in ("mamba", "falcon_mamba", "mamba2") else "filter"
    with attach(model, side, method=method):
        wanted = model(ids, logits_to_keep=4).logits
        tokens = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    plain = model(ids).logits
    model = spread(accelerate, model)
    mixers = [module for module in model.modules() if hasattr(module, "A_log")]
    assert all("_hf_hook" in vars(mixer) for mixer in mixers)
    hooked = {id(mixer): mixer.forward for mixer in mixers}
    with attach(model, side, method=method) as attached:
        assert all(mixer.forward is hooked[id(mixer)] for mixer in mixers)
        assert torch.equal(model(ids, logits_to_keep=4).logits, wanted) and attached.plan.method == method
        again = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert torch.equal(again, tokens)
    assert torch.equal(model(ids).logits, plain)
    assert all(mixer.forward is hooked[id(mixer)] for mixer in mixers)


@torch.no_grad()
def test_hooks_that_come_and_go_while_attached(ids, accelerate):
    hooks = accelerate.hooks
    for before in (False, True):
        model = build("bamba")
        plain = model(ids).logits
        if before:
            model = spread(accelerate, model)
        attach(model)
        if before:
            hooks.remove_hook_from_submodules(model)
        else:
            model = spread(accelerate, model)
        assert not torch.equal(model(ids).logits, plain)  # other sums in the scan
        detach(model)
        assert torch.equal(model(ids).logits, plain)


def test_a_hybrid_is_loaded_over_all_devices(ids, tmp_path, accelerate):
    build("bamba").save_pretrained(tmp_path)
    lm = load(tmp_path, device="spread")
    assert lm.weights.devices == [torch.device("cpu")] * 2
    assert torch.equal(lm.prefill(ids).logits, load(tmp_path, device="cpu").prefill(ids).logits)
    with pytest.raises(ValueError, match="'spread' is for hybrids"):
        load("demo", device="spread")


def test_offloaded_layers_are_refused(accelerate, tmp_path):
    model = build("mamba2")
    accelerate.disk_offload(model, tmp_path)
    with pytest.raises(ValueError, match="Mamba layers are offloaded"):
        attach(model)


def test_layers_that_another_library_runs_are_refused():
    model = build("mamba")
    mixer = model.backbone.layers[1].mixer
    mixer.forward = mixer.forward
    with pytest.raises(ValueError, match="another library runs this model's Mamba layers"):
        attach(model)


def test_thresholds_lie_where_their_layer_lies(tmp_path):
    build("mamba").save_pretrained(tmp_path)
    side = make_sidecar(load(tmp_path))
    where = [torch.device("meta"), torch.device("cpu"), torch.device("meta")]
    plans = layer_plans((side.plan(64, "both"),), side, SimpleNamespace(devices=where), 1)
    held = [t for plan in plans for t in (plan.threshold, plan.score_weight) if t is not None]
    assert len(held) > 3
    for plan, device in zip(plans, where):
        assert {t.device for t in (plan.threshold, plan.score_weight) if t is not None} == {device}


def test_tensor_parallel_models_are_refused(tmp_path):
    """As transformers' tp_plan leaves them: weights that are DTensors over a mesh of processes, here of one."""
    import torch.distributed as dist
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    model = build("jamba")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        layer = next(module for module in model.modules() if hasattr(module, "q_proj"))
        layer.q_proj.weight = nn.Parameter(distribute_tensor(layer.q_proj.weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(ValueError, match="tensor-parallel"):
            attach(model)
    finally:
        dist.destroy_process_group()
