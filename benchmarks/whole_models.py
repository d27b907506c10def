"""Prefill and decode of whole models with random weights, beside mamba-ssm's model; called by benchmarks/kernels.py.

Prefill: 64k tokens of the 1.4B shape, plain, and keeping 4000 tokens from layer 12 on (DeciMamba's published setting).
Decode: one token at batch 1, as LM.step runs it (on a GPU it replays a CUDA graph) and, there, launched one by one; the
bound is the bytes of weights and state over the bandwidth of a copy on the same chip.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shapes import write_state_spaces
from timing import bandwidth, machine, quantiles
from torch import Tensor

from longscan.calibrate.speed import state_bytes, weight_bytes
from longscan.runtime import LM, load
from longscan.runtime.reading.forward import embed, logits, run_layers, step_layers
from longscan.runtime.reading.state import State
from longscan.runtime.sidecar.plan import PLAIN, LayerPlan

COLUMNS = ("model", "what", "tokens", "low_ms", "median_ms", "high_ms", "bound_ms")
M, LAYERS, TOKENS, DECIMATE, KEEP = 2048, 48, 65536, 12, 4000


def peer_model(tensors: dict[str, Tensor], n_layer: int) -> Any | None:
    """mamba-ssm's model with the same weights. None if not installed."""
    try:
        from mamba_ssm.models.config_mamba import MambaConfig
        from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    except ImportError:
        return None
    V, width = tensors["backbone.embedding.weight"].shape
    config = MambaConfig(d_model=width, n_layer=n_layer, vocab_size=V, ssm_cfg={"layer": "Mamba1"})
    model = MambaLMHeadModel(config, device="cuda", dtype=torch.bfloat16)
    model.load_state_dict({**tensors, "lm_head.weight": tensors["backbone.embedding.weight"]})
    return model


def peer_decode(model: Any) -> Callable[[Tensor], Tensor]:
    """mamba-ssm's step in its own CUDA graph (`cg=True`), from a zero state: token (1,) -> logits (1, V)."""
    from mamba_ssm.utils.generation import update_graph_cache

    cache = update_graph_cache(model, None, batch_size=1, seqlen_og=1, max_seqlen=2)
    for states in cache.inference_params.key_value_memory_dict.values():  # what its warm-up left
        for state in states:
            state.zero_()
    return lambda token: cache.run(token[:, None], torch.zeros_like(token[:, None]), 1)[:, -1].float()


def decimated_prefill(lm: LM, ids: Tensor, layer: int, keep: int) -> Tensor:
    """One pass that keeps `keep` tokens from `layer` on; logits of the last token. No sidecar needed."""
    state = lm.new_state(ids.shape[0])
    stream = embed(lm.weights, lm.config, ids, state.length, None)
    plans = [LayerPlan(keep=keep) if i == layer else PLAIN for i in range(len(lm.weights.layers))]
    stream = run_layers(lm.weights, lm.config, stream, state, plans, backend=lm.backend)
    return logits(lm.weights, lm.config, stream.residual[:, -1])


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
        tensors = write_state_spaces(Path(folder), width, n_layer, V, device)
        lm = load(folder, device=device, dtype=torch.float32 if tiny else torch.bfloat16)
    ids = torch.randint(0, V, (1, tokens), device=device, generator=torch.Generator(device).manual_seed(1))

    wanted = lm.prefill(ids).logits[:, -1]
    check("decimation that keeps every token", decimated_prefill(lm, ids, layer, tokens), wanted, 5e-2)
    row("prefill", tokens, lambda: lm.prefill(ids))
    row(f"prefill keeping {keep} from layer {layer}", tokens, lambda: decimated_prefill(lm, ids, layer, keep))
    peer = peer_model(tensors, n_layer) if device == "cuda" else None
    if peer is None:
        print("mamba-ssm is not installed: its model is left out", file=sys.stderr)
    else:

        def peer_prefill() -> Tensor:
            return peer(ids, num_last_tokens=1).logits[:, -1].float()

        check("mamba-ssm's model", peer_prefill(), wanted, 5e-2)
        row("prefill mamba-ssm", tokens, peer_prefill)

    state = lm.prefill(ids).state
    token = torch.zeros(1, dtype=torch.int64, device=device)
    bound = round(1e3 * (weight_bytes(lm.weights) + 2 * state_bytes(lm)) / bandwidth(device), 4)
    if device == "cuda":

        def launched(own: State) -> Tensor:
            return step_layers(lm.weights, lm.config, token, own, lm.backend)

        eager = state.clone()
        wanted = [launched(eager) for _ in range(3)][-1]
        check("the decode graph", [lm.step(token, state)[0] for _ in range(3)][-1], wanted, 1e-2)
        row("decode, launched one by one", 1, lambda: launched(eager), bound)
    row("decode", 1, lambda: lm.step(token, state), bound)
    if peer is not None:
        step, state = peer_decode(peer), lm.new_state(1)
        wanted = [lm.step(token, state)[0] for _ in range(3)][-1]
        check("mamba-ssm's decode graph", [step(token) for _ in range(3)][-1], wanted, 5e-2)
        row("decode mamba-ssm, its CUDA graph", 1, lambda: step(token), bound)
    with path.open("w", newline="") as file:
        file.write(f"# {machine(device)}\n")
        writer: Any = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
