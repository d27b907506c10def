"""Weights quantised in memory: projections are called as the model's own modules; what would be read raw is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from longscan.runtime import attach, load

from ...checkpoints import make_sidecar
from .models import build

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 64, (2, 64), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "mamba2", "jamba", "nemotron_h"])
def test_torchaos_int8_weights(name, ids, tmp_path, relative_rms):
    """As the same weights multiplied out; the sidecar of the unquantised model fits, and its filter works."""
    torchao = pytest.importorskip("torchao.quantization", reason="needs torchao", exc_type=ImportError)
    model = build(name)
    model.save_pretrained(tmp_path)
    side = make_sidecar(load(tmp_path))
    plain = model(ids).logits
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    twin = build(name)
    for module, other in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(module, nn.Linear):
            assert type(module.weight) is not nn.Parameter
            other.weight = nn.Parameter(module.weight.dequantize())  # its own: a tied embedding stays as it was
    with attach(model, side, method="filter"), attach(twin, side, method="filter"):
        found, wanted = model(ids).logits, twin(ids).logits
        tokens = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert tokens.shape == (2, 68)
    assert relative_rms(found, wanted) < 1e-4
    assert relative_rms(found, plain) > 1e-3  # quantised and filtered


class Packed(nn.Linear):
    """A linear map as bitsandbytes' Linear4bit holds it: two weights a byte, in one column that its forward unpacks."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.bias, self.step = linear.bias, linear.weight.detach().abs().max() / 7
        high, low = ((linear.weight.detach() / self.step).round() + 8).to(torch.uint8).view(-1, 2).T
        self.weight = nn.Parameter((16 * high + low)[:, None], requires_grad=False)

    def multiplied_out(self):
        pairs = torch.cat([self.weight // 16, self.weight % 16], 1)
        return ((pairs.float() - 8) * self.step).view(self.out_features, self.in_features)

    def forward(self, x):
        return nn.functional.linear(x, self.multiplied_out(), self.bias)


def bitsandbytes_4bit(linear):
    """bitsandbytes' own, without the form for a CPU that takes some widths only."""
    bnb = pytest.importorskip("bitsandbytes")
    more = {"bias": linear.bias is not None, "compute_dtype": torch.float32, "quant_type": "nf4"}
    found = bnb.nn.Linear4bit(linear.in_features, linear.out_features, **more)
    found.load_state_dict(linear.state_dict())
    found.support_avx512bf16_for_cpu = False
    found.to("cpu").multiplied_out = lambda: bnb.functional.dequantize_4bit(found.weight.data, found.weight.quant_state)
    return found.eval()


@torch.no_grad()
@pytest.mark.parametrize("packed", [Packed, bitsandbytes_4bit])
@pytest.mark.parametrize("name", ["mamba", "mamba2", "bamba", "jamba", "falcon_h1", "nemotron_h"])
def test_four_bit_weights(name, packed, ids, tmp_path, relative_rms):
    """As the same weights multiplied out; dt_proj, which is read, must be left as it is."""
    model, twin = build(name), build(name)
    model.save_pretrained(tmp_path)
    side = make_sidecar(load(tmp_path))
    plain = model(ids).logits
    for path, linear in list(model.named_modules()):
        if type(linear) is nn.Linear and not path.endswith(("lm_head", "dt_proj")):
            small = packed(linear)
            model.set_submodule(path, small)
            twin.get_submodule(path).weight.copy_(small.multiplied_out())
    with attach(model, side, method="filter"), attach(twin, side, method="filter"):
        found, wanted = model(ids).logits, twin(ids).logits
        tokens = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert tokens.shape == (2, 68)
    assert relative_rms(found, wanted) < 1e-4
    assert relative_rms(found, plain) > 1e-3
    mixer = next(module for module in model.modules() if hasattr(module, "A_log"))
    if hasattr(mixer, "dt_proj"):
        mixer.dt_proj = packed(mixer.dt_proj)
        with pytest.raises(ValueError, match="weights of dt_proj"):
            attach(model)


class Adapted(nn.Module):
    """A linear map with an adapter, whose `weight` is the map's alone: as PEFT's layers have it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.more = base, nn.Linear(base.in_features, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + self.more(x)


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "jamba"])
def test_what_dt_proj_does_besides_its_weight_is_refused(name):
    """Its weight is read; an adapter or a packed weight must not be left out in silence."""
    model = build(name)
    mixer = next(module for module in model.modules() if hasattr(module, "dt_proj"))
    mixer.dt_proj = Adapted(mixer.dt_proj)
    with pytest.raises(ValueError, match="weights of dt_proj, and this model's is a Adapted"):
        attach(model)
    mixer.dt_proj = mixer.dt_proj.base
    mixer.dt_proj.weight = nn.Parameter(mixer.dt_proj.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="weights of dt_proj"):
        attach(model)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_what_conv1d_does_besides_its_weight_is_refused(name):
    model = build(name)
    mixer = next(module for module in model.modules() if hasattr(module, "conv1d"))

    class Adapted1d(nn.Conv1d):
        def forward(self, x):
            return super().forward(x) + 1

    other = copy.deepcopy(mixer.conv1d)
    other.__class__ = Adapted1d
    mixer.conv1d = other
    with pytest.raises(ValueError, match="weights of conv1d"):
        attach(model)
