"""Prefill and decode of whole models with random weights, beside mamba-ssm's model; called by benchmarks/kernels.py.

Prefill: 64k tokens of the 1.4B shape, plain, and keeping 4000 tokens from layer 12 on (DeciMamba's published setting).
Decode: one token at batch 1, all layers in one CUDA graph; the bound is the bytes of the weights over the bandwidth.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from static_cost import BANDWIDTH
from timing import machine, quantiles
from torch import Tensor

from longscan.calibrate.speed import state_bytes, weight_bytes
from longscan.runtime import LM, load
from longscan.runtime.forward import embed, logits, run_layers, step_layers
from longscan.runtime.plan import PLAIN, LayerPlan
from longscan.runtime.state import State

COLUMNS = ("model", "what", "tokens", "low_ms", "median_ms", "high_ms", "bound_ms")
M, LAYERS, TOKENS, DECIMATE, KEEP = 2048, 48, 65536, 12, 4000


def checkpoint(folder: Path, M: int, n_layer: int, V: int, device: str) -> dict[str, Tensor]:
    """Random weights by state-spaces names, written to `folder` and returned."""
    g, D, R, N = torch.Generator(device).manual_seed(0), 2 * M, -(-M // 16), 16

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device) * shape[-1] ** -0.5

    one = torch.ones(M, device=device)
    tensors = {"backbone.embedding.weight": rand(V, M), "backbone.norm_f.weight": one.clone()}
    for i in range(n_layer):
        p = f"backbone.layers.{i}."
        tensors |= {
            p + "norm.weight": one.clone(),
            p + "mixer.in_proj.weight": rand(2 * D, M),
            p + "mixer.conv1d.weight": rand(D, 1, 4),
            p + "mixer.conv1d.bias": torch.zeros(D, device=device),
            p + "mixer.x_proj.weight": rand(R + 2 * N, D),
            p + "mixer.dt_proj.weight": rand(D, R),
            p + "mixer.dt_proj.bias": torch.expm1(torch.logspace(-3, -1, D, device=device)).log(),
            p + "mixer.A_log": torch.arange(1.0, N + 1, device=device).log().repeat(D, 1),
            p + "mixer.D": torch.ones(D, device=device),
            p + "mixer.out_proj.weight": rand(M, D),
        }
    tensors = {k: v if k.endswith(("A_log", ".D", "dt_proj.bias")) else v.bfloat16() for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"d_model": M, "n_layer": n_layer, "vocab_size": V, "ssm_cfg": {}, "rms_norm": True}
    config |= {"residual_in_fp32": True, "fused_add_norm": True, "pad_vocab_size_multiple": 8}
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def peer_prefill(tensors: dict[str, Tensor], n_layer: int) -> Callable[[Tensor], Tensor] | None:
    """mamba-ssm's model with the same weights: ids -> logits of the last token. None if not installed."""
    try:
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    except ImportError:
        return None
    V, width = tensors["backbone.embedding.weight"].shape
    config = MambaConfig(d_model=width, n_layer=n_layer, vocab_size=V, ssm_cfg={"layer": "Mamba1"})
    model = MambaLMHeadModel(config, device="cuda", dtype=torch.bfloat16)
    model.load_state_dict({**tensors, "lm_head.weight": tensors["backbone.embedding.weight"]})
    return lambda ids: model(ids, num_last_tokens=1).logits[:, -1].float()


def decimated_prefill(lm: LM, ids: Tensor, layer: int, keep: int) -> Tensor:
    """One pass that keeps `keep` tokens from `layer` on; logits of the last token. No sidecar needed."""
    state = lm.new_state(ids.shape[0])
    stream = embed(lm.weights, lm.config, ids, state.length, None)
    plans = [LayerPlan(keep=keep) if i == layer else PLAIN for i in range(len(lm.weights.layers))]
    stream = run_layers(lm.weights, lm.config, stream, state, plans, backend=lm.backend)
    return logits(lm.weights, lm.config, stream.residual[:, -1])


class DecodeGraph:
    """A decode step as one CUDA graph. `state` is the graph's own: step(token) advances it in place."""

    def __init__(self, lm: LM, state: State):
        self.token = torch.zeros_like(state.length)
        before = state.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles the kernels, which a capture cannot
            step_layers(lm.weights, lm.config, self.token, state, lm.backend)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = step_layers(lm.weights, lm.config, self.token, state, lm.backend)
        state.conv.copy_(before.conv)
        state.ssm.copy_(before.ssm)

    def step(self, token: Tensor) -> Tensor:
        """token (B,) -> logits (B, V), overwritten by the next step."""
        self.token.copy_(token)
        self.graph.replay()
        return self.logits


def check(name: str, found: Tensor, wanted: Tensor, bound: float) -> None:
    """Refuse a speed on a wrong result."""
    off = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    if not off <= bound:
        raise SystemExit(f"Error: {name}: logits are off by {off:.1e} (relative RMS); no speed reported")


@torch.inference_mode()
def whole_models(path: Path, device: str, tiny: bool = False) -> None:
    """Measure and write one CSV."""
    width, n_layer, tokens, layer, keep, V = (
        (32, 3, 50, 1, 20, 64) if tiny else (M, LAYERS, TOKENS, DECIMATE, KEEP, 50280)
    )
    name, rows = "tiny" if tiny else "1.4b", []

    def row(what: str, count: int, run: Callable[[], object], bound: float | None = None) -> None:
        low, median, high = (round(ms, 4) for ms in quantiles(run, device))
        rows.append(dict(zip(COLUMNS, (name, what, count, low, median, high, bound))))
        print(f"{name} {what}: {median:.3f} ms ({low:.3f} to {high:.3f})" + (f", bound {bound} ms" if bound else ""))

    with tempfile.TemporaryDirectory() as folder:
        tensors = checkpoint(Path(folder), width, n_layer, V, device)
        lm = load(folder, device=device, dtype=torch.float32 if tiny else torch.bfloat16)
    ids = torch.randint(0, V, (1, tokens), device=device, generator=torch.Generator(device).manual_seed(1))

    wanted = lm.prefill(ids).logits[:, -1]
    check("decimation that keeps every token", decimated_prefill(lm, ids, layer, tokens), wanted, 5e-2)
    row("prefill", tokens, lambda: lm.prefill(ids))
    row(f"prefill keeping {keep} from layer {layer}", tokens, lambda: decimated_prefill(lm, ids, layer, keep))
    peer = peer_prefill(tensors, n_layer) if device == "cuda" else None
    if peer is None:
        print("mamba-ssm is not installed: its model is left out", file=sys.stderr)
    else:
        check("mamba-ssm's model", peer(ids), wanted, 5e-2)
        row("prefill mamba-ssm", tokens, lambda: peer(ids))

    state = lm.prefill(ids).state
    token = torch.zeros(1, dtype=torch.int64, device=device)
    bound = round(1e3 * (weight_bytes(lm.weights) + 2 * state_bytes(lm)) / BANDWIDTH, 4)
    if device == "cuda":
        eager, _ = lm.step(token, state.clone())
        graph = DecodeGraph(lm, state)
        check("the decode graph", graph.step(token), eager, 1e-2)
        row("decode, CUDA graph", 1, lambda: graph.step(token), bound)
    row("decode", 1, lambda: lm.step(token, state), bound)
    with path.open("w", newline="") as file:
        file.write(f"# {machine(device)}\n")
        writer: Any = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
