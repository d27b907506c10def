"""One prompt read in every way: at once, in chunks, in pieces, step by step, attached; each against float64 at once.

Random shapes, families, plans, chunks and dtypes; the error is the relative RMS of the last logits. In float64 all ways
agree to rounding, or the way is at fault; what float32 and bfloat16 add to that is rounding, split here by way.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from shared import checkpoints, keep

from longscan.runtime import LM, load

FAMILIES = ("mamba1", "mamba2", "falcon")
DTYPES = ("float64", "float32", "bfloat16")


def build(family: str, draw: random.Random, folder: Path) -> Path:
    shape = {
        "M": 8 * draw.randint(1, 4),
        "n_layer": draw.randint(1, 4),
        "V": 64,
        "N": draw.choice((1, 4, 8, 16)),
        "seed": draw.randrange(1000),
    }
    if family == "mamba2":
        tensors = checkpoints.random_mamba2_tensors(**shape, P=8, G=1)
        return checkpoints.write_state_spaces(folder, tensors, ssm_cfg={"layer": "Mamba2", "headdim": 8})
    tensors = checkpoints.random_tensors(**shape)
    if family == "mamba1":
        return checkpoints.write_state_spaces(folder, tensors)
    M, N = shape["M"], shape["N"]
    sizes = {"state_size": N, "intermediate_size": 2 * M, "time_step_rank": -(-M // 16), "tie_word_embeddings": True}
    return checkpoints.write_falcon(folder, tensors, **sizes, use_bias=False, use_conv_bias=True)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def ways(lm: LM, ids: torch.Tensor, method: str, draw: random.Random) -> dict[str, torch.Tensor]:
    """Last logits, (B, V), by each way of reading."""
    L = ids.shape[1]
    cut = draw.randint(1, L - 1)
    first = lm.prefill(ids[:, :cut], total_length=L, method=method)
    found = {
        "at once": lm.prefill(ids, method=method).logits[:, -1],
        "chunks": lm.prefill(ids, method=method, chunk=draw.randint(1, L)).logits[:, -1],
        "pieces": lm.prefill(ids[:, cut:], state=first.state, total_length=L, method=method).logits[:, -1],
    }
    if method == "none":
        lm = lm.with_sidecar(None)  # whose filter a step from nothing would follow
        logits, state = None, lm.new_state(len(ids))
        for t in range(L):
            logits, state = lm.step(ids[:, t], state)
        assert logits is not None
        found["steps"] = logits
    return found


def attached(folder: Path, side: Any, ids: torch.Tensor, method: str, dtype: str) -> torch.Tensor:
    """transformers' own Falcon-Mamba of the same files, attached."""
    import transformers

    from longscan.runtime import attach

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    with torch.inference_mode(), attach(model, side, method=method):
        found: torch.Tensor = model(ids, logits_to_keep=1).logits[:, -1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="comparisons with float64")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no model is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    worst: dict[str, dict[str, Any]] = {dtype: {} for dtype in DTYPES}
    compared, model, began = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        while compared < options.cases and time.monotonic() - began < options.budget:
            draw = random.Random(f"{options.seed} {model}")
            model += 1
            family = draw.choice(FAMILIES)
            folder = build(family, draw, Path(root) / str(model % 8))
            lms = {dtype: load(folder, dtype=dtype) for dtype in DTYPES}
            side = checkpoints.make_sidecar(lms["float64"], layer=draw.randrange(len(lms["float64"].weights.layers)))
            for number in range(6):
                method = draw.choice(("none", "filter", "decimate", "both"))
                ids = torch.tensor([[draw.randrange(64) for _ in range(draw.randint(2, 120))]])
                choices = draw.random()
                wanted = lms["float64"].with_sidecar(side).prefill(ids, method=method).logits[:, -1]
                for dtype, lm in lms.items():
                    found = ways(lm.with_sidecar(side), ids, method, random.Random(choices))
                    if family == "falcon" and number == 0 and dtype != "bfloat16":
                        found["attached"] = attached(folder, side, ids, method, dtype)
                    for way, logits in found.items():
                        compared += 1
                        off = error(logits, wanted)
                        kind = "kept tokens may differ" if method in ("decimate", "both") else "all tokens kept"
                        split = worst[dtype].setdefault(f"{way}, {kind}", {"cases": 0, "worst": 0.0, "seen": []})
                        split["cases"] += 1
                        split["seen"].append(off)
                        if off > split["worst"] or math.isnan(off):
                            split |= {
                                "worst": off,
                                "where": f"model {model}, {family}, {method}, {ids.shape[1]} tokens",
                            }
    for by_way in worst.values():
        for split in by_way.values():
            split["median"] = statistics.median(split.pop("seen"))
    result = {"comparisons": compared, "models": model, "worst": worst, "seconds": round(time.monotonic() - began, 1)}
    for dtype, by_way in worst.items():
        for way, split in sorted(by_way.items()):
            print(
                f"{dtype:<9} {way:<36} {split['cases']:>6} cases, median {split['median']:.1e}, worst {split['worst']:.1e} ({split.get('where', 'the same bits')})"  # noqa: E501
            )
    keep(options.out, seed=options.seed, **result)
    # transformers' own norms are float32 in a float64 model, too
    if any(not split["worst"] < (1e-6 if "attached" in way else 1e-9) for way, split in worst["float64"].items()):
        raise SystemExit("Error: two ways of reading differ in float64")


if __name__ == "__main__":
    main()
