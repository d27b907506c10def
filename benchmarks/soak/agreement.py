"""One prompt read in every way: at once, in chunks, in pieces, step by step, beside another row, attached, and by
transformers alone; each against float64 at once, which the kernels' oracles compute.

Random families, shapes, plans, chunks and dtypes; the error is the relative RMS of the last logits. In float64 all ways
agree to rounding, or the way is at fault; what float32 and bfloat16 add to that is rounding, split here by way.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from agreement_models import VOCABULARY, Family, build, families
from shared import checkpoints, keep

from longscan.runtime import LM, attach, load

DTYPES = ("float64", "float32", "bfloat16")
PROMPTS = 6  # of a model
ROUNDING = 1e-12  # of float64, in our own code
# What transformers computes in float32 whatever the model's dtype:
NORMS = 1e-6  # with a hybrid's rotary angles, softmax and routers: what stays its own when it is attached to
ALONE = 1e-5  # delta and the scan, too, over all layers and tokens


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def ways(lm: LM, family: Family, ids: torch.Tensor, method: str, draw: random.Random) -> dict[str, torch.Tensor]:
    """Last logits, (B, V), by each way of reading."""
    L = ids.shape[1]
    cut = draw.randint(1, L - 1)
    first = lm.prefill(ids[:, :cut], total_length=L, method=method)
    longer = torch.cat([ids[0].flip(0), ids[0][: draw.randint(1, L)]])
    found = {
        "at once": lm.prefill(ids, method=method).logits[:, -1],
        "chunks": lm.prefill(ids, method=method, chunk=draw.randint(1, L)).logits[:, -1],
        "pieces": lm.prefill(ids[:, cut:], state=first.state, total_length=L, method=method).logits[:, -1],
        "beside a longer row": lm.prefill([ids[0], longer], method=method).logits[:1, -1],
    }
    if method == "none":
        lm = lm.with_sidecar(None)  # whose filter a step from nothing would follow
        if family.hybrid:  # its cache begins with a token
            start = lm.prefill(ids[:, :1])
            logits, state = start.logits[:, -1], start.state
        else:
            logits, state = torch.empty(0), lm.new_state(len(ids))
        for t in range(1 if family.hybrid else 0, L):
            logits, state = lm.step(ids[:, t], state)
        found["steps"] = logits
    return found


def theirs(model: Any, side: Any, ids: torch.Tensor, method: str) -> dict[str, torch.Tensor]:
    """Last logits of transformers' own model of the same files, attached, and where nothing is filtered also alone."""
    with torch.inference_mode():
        found = {"transformers": model(ids).logits[:, -1]} if method == "none" else {}
        with attach(model, side, method=method):
            return found | {"attached": model(ids, logits_to_keep=1).logits[:, -1]}


def bound(family: str, way: str) -> float:
    """Of the relative RMS in float64."""
    if way == "transformers":
        return ALONE
    hybrid = next(one for one in families() if one.name == family).hybrid
    return NORMS if hybrid or way == "attached" else ROUNDING


class Errors:
    """Of each (dtype, family, way, kind of plan): the errors seen, and where the worst was."""

    def __init__(self) -> None:
        self.splits: dict[tuple[str, str, str, str], dict[str, Any]] = {}

    def add(self, dtype: str, family: str, way: str, method: str, off: float, where: str) -> None:
        kind = "kept tokens may differ" if method in ("decimate", "both") else "all tokens kept"
        split = self.splits.setdefault((dtype, family, way, kind), {"seen": [], "worst": -1.0, "where": ""})
        split["seen"].append(off)
        if off > split["worst"] or math.isnan(off):
            split |= {"worst": off, "where": where}

    def grouped(self, *keys: int) -> dict[tuple[str, ...], dict[str, Any]]:
        """By some of the four."""
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for key, split in self.splits.items():
            into = found.setdefault(tuple(key[k] for k in keys), {"seen": [], "worst": -1.0, "where": ""})
            into["seen"] += split["seen"]
            if not split["worst"] <= into["worst"]:
                into |= {"worst": split["worst"], "where": split["where"]}
        return {
            key: {"cases": len(one["seen"]), "median": statistics.median(one.pop("seen")), **one}
            for key, one in sorted(found.items())
        }

    def too_far(self) -> list[str]:
        """Ways that differ in float64 by more than rounding explains."""
        return [
            f"{family}, {way}: {split['worst']:.1e} ({split['where']})"
            for (dtype, family, way, _), split in self.splits.items()
            if dtype == "float64" and not split["worst"] < bound(family, way)
        ]


def compare(family: Family, draw: random.Random, folder: Path, name: str, errors: Errors) -> int:
    """A model's prompts in all ways and dtypes -> comparisons made."""
    build(family, draw, folder)
    lms = {dtype: load(folder, dtype=dtype) for dtype in DTYPES}
    side = checkpoints.make_sidecar(lms["float64"], layer=draw.randrange(len(lms["float64"].weights.layers)))
    peers = {dtype: peer(folder, dtype) for dtype in DTYPES} if family.transformers else {}
    methods = ("none", "filter") if family.hybrid else ("none", "filter", "decimate", "both")
    compared = 0
    for _ in range(PROMPTS):
        method, rows, L = draw.choice(methods), draw.randint(1, 3), draw.randint(2, 120)
        ids = torch.tensor([[draw.randrange(1, VOCABULARY) for _ in range(L)] for _ in range(rows)])
        choices = draw.random()
        wanted = lms["float64"].with_sidecar(side).prefill(ids, method=method).logits[:, -1]
        for dtype, lm in lms.items():
            found = ways(lm.with_sidecar(side), family, ids, method, random.Random(choices))
            if dtype in peers:
                found |= theirs(peers[dtype], side, ids, method)
            if dtype == "float64":
                del found["at once"]  # with which all others are compared
            for way, logits in found.items():
                off = error(logits, wanted[: len(logits)])
                errors.add(dtype, family.name, way, method, off, f"{name}, {method}, {rows} x {L} tokens")
                compared += 1
    return compared


def peer(folder: Path, dtype: str) -> Any:
    """transformers' own model, whose default product for experts takes no float64."""
    how = {"experts_implementation": "eager"} if dtype == "float64" else {}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **how).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="comparisons with float64")
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds after which no model is begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    errors, compared, model, began = Errors(), 0, 0, time.monotonic()
    every = families()
    with tempfile.TemporaryDirectory() as root:
        while compared < options.cases and time.monotonic() - began < options.budget:
            family, folder = every[model % len(every)], Path(root) / "model"
            draw = random.Random(f"{options.seed} {model}")
            compared += compare(family, draw, folder, f"model {model}", errors)
            shutil.rmtree(folder)
            model += 1
    tables = {"by dtype": (0,), "by way": (0, 2, 3), "by family": (0, 1, 3)}
    result: dict[str, Any] = {"comparisons": compared, "models": model, "seconds": round(time.monotonic() - began, 1)}
    for title, keys in tables.items():
        result[title] = {", ".join(key): split for key, split in errors.grouped(*keys).items()}
        print(title)
        for name, one in result[title].items():
            print(f"  {name:<58} {one['cases']:>6} cases, median {one['median']:.1e}, worst {one['worst']:.1e}")
    keep(options.out, seed=options.seed, **result)
    if far := errors.too_far():
        raise SystemExit("Error: these differ in float64:\n" + "\n".join(far))


if __name__ == "__main__":
    main()
