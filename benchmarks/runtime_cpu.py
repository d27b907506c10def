"""Prefill and decode beside transformers' torch path and llama.cpp: the mamba-130m shape, random weights, one run.

    python benchmarks/runtime_cpu.py [--threads 1] [--ours 4096,32768,131072] [--theirs 4096,8192] [--out FILE]

Every cell is a fresh process, and the two implementations take turns. With one thread, times are the process's CPU
seconds, which other work on the machine hardly moves; with more they are seconds on the clock. "peak" is the process's
peak resident memory; "prefill" is how far the prompt raised it above that of the loaded and warmed-up model. No speed
is reported unless both give the same logits. llama.cpp decodes beside us where `llama-bench` is found (see llama.py).
The peer keeps several (D, L, N) float32 tensors at once: the last column counts the three it cannot do without (the
discretised A and B, and B x).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama
import torch
import torch.nn.functional as F
from record import fresh, keep, machine, peak_bytes
from shapes import SHAPES, STATES, VOCABULARY, write_model
from torch import Tensor

WIDTH = 2 * SHAPES["130m"][0]  # D
STEPS, TURNS = 8, 9
SAME = 1e-3  # relative RMS; with random weights each of the two is some 1e-4 away from a float64 model
KERNELS = {"selective_scan": "scan", "causal_conv1d": "convolution", "<built-in method torch._C._nn.linear>": "matmul"}


class Ours:
    """This project's runtime."""

    def __init__(self, folder: str, dtype: str = "float32"):
        from longscan.runtime import load

        self.lm = load(folder, dtype=dtype)

    def prefill(self, ids: Tensor) -> Tensor:
        out = self.lm.prefill(ids)
        self.state = out.state
        return out.logits[:, -1]

    def step(self, token: Tensor) -> Tensor:
        return self.lm.step(token, self.state)[0]


class Theirs:
    """transformers without mamba-ssm or causal-conv1d."""

    def __init__(self, folder: str):
        from transformers import MambaForCausalLM

        self.model = MambaForCausalLM.from_pretrained(folder).eval()

    def prefill(self, ids: Tensor) -> Tensor:
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        self.cache = out.cache_params
        return out.logits[:, -1]

    def step(self, token: Tensor) -> Tensor:
        return self.model(token[:, None], cache_params=self.cache, use_cache=True).logits[:, -1]


def pick_clock() -> Callable[[], float]:
    """CPU seconds where one thread does all the work."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


@torch.inference_mode()
def worker(engine: str, folder: str, length: int, logits: str) -> None:
    """One prefill; prints a JSON line and leaves the prompt's last logits in a file."""
    clock = pick_clock()
    model = {"ours": Ours, "theirs": Theirs}[engine](folder)
    ids = torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    model.prefill(ids[:, :64])
    loaded = peak_bytes()
    profile = cProfile.Profile(clock)
    began = clock()
    found = profile.runcall(model.prefill, ids) if engine == "ours" else model.prefill(ids)
    seconds, peak = clock() - began, peak_bytes()
    torch.save(found, logits)
    cell = {"engine": engine, "tokens": length, "seconds": seconds, "peak": peak, "prefill": peak - loaded}
    print(json.dumps({**cell, "shares": shares(profile, seconds) if engine == "ours" else None}))


@torch.inference_mode()
def decode(folder: str) -> None:
    """All step in one process, taking turns; prints the median seconds of each a step.

    Beside them, of the same weights: torch's products alone, and `read`, how long it takes to read as many bytes.
    """
    clock = pick_clock()
    models = {"ours": Ours(folder), "theirs": Theirs(folder), "ours bfloat16": Ours(folder, "bfloat16")}
    runs: dict[str, Callable[[int], object]] = {}
    for name, model in models.items():
        model.prefill(torch.arange(64)[None])
        runs[name] = lambda k, model=model: model.step(torch.tensor([k]))
    memory = torch.ones(2**27)
    for name, model in models.items():
        if isinstance(model, Ours):
            products = [(t, torch.ones(1, t.shape[1], dtype=t.dtype)) for t in matrices(model.lm.weights)]
            runs[f"products of {name}"] = lambda k, products=products: [F.linear(x, t) for t, x in products]
            values = sum(t.numel() * t.element_size() for t, _ in products) // 4
            runs[f"reading {name}"] = lambda k, values=values: memory[:values].sum()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(TURNS):
        for name, run in runs.items():
            run(0)
            began = clock()
            for k in range(STEPS):
                run(k)
            seconds[name].append((clock() - began) / STEPS)
    print(json.dumps({name: statistics.median(found) for name, found in seconds.items()}))


def matrices(weights: Any) -> list[Tensor]:
    """What a step multiplies by."""
    found = [t for a in weights.layers for t in (a.in_proj.weight, a.x_proj.weight, a.dt_proj, a.out_proj.weight)]
    return [*found, weights.head]


def decode_lines(step: dict[str, float], peer: dict[str, float]) -> list[str]:
    """What a decode step takes, in words."""
    lines = []
    for dtype, name in (("float32", "ours"), ("bfloat16", "ours bfloat16")):
        ours, products, read = step[name], step[f"products of {name}"], step[f"reading {name}"]
        said = f"step, {dtype}: {ours * 1e3:.1f} ms, {1 / ours:.1f} tokens a second; torch's products alone take "
        said += f"{products * 1e3:.1f} ms, reading the weights {read * 1e3:.1f} ms ({read / ours:.0%} of the step)"
        lines.append(said + (f"; llama.cpp {peer[dtype]:.1f} tokens a second" if dtype in peer else ""))
    lines.append(f"step, float32: {step['theirs'] / step['ours']:.2f}x as fast as transformers")
    return lines


def shares(profile: cProfile.Profile, seconds: float) -> dict[str, float]:
    """Share of the prefill's time in the kernels and the matrix products."""
    found = dict.fromkeys(KERNELS.values(), 0.0)
    for (file, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():
        if name in KERNELS and (file == "~" or file.endswith("api.py")):
            found[KERNELS[name]] += cumulative / seconds
    return found


def same(left: Path, right: Path) -> float:
    """Relative RMS difference of two saved tensors; ends the run if it is too large."""
    ours, theirs = torch.load(left), torch.load(right)
    error = float((ours - theirs).norm() / theirs.norm())
    if not error < SAME:
        raise SystemExit(f"Error: the logits differ by {error:.1e} (relative RMS); no speed is reported")
    return error


def needed(tokens: int) -> int:
    """Bytes of three (D, L, N) float32 tensors."""
    return 3 * 4 * WIDTH * STATES * tokens


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown, one line a cell."""
    lines = [
        "| | tokens | seconds | us a token | peak GB | prefill GB | (D, L, N) GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        L, name = cell["tokens"], "LongScan" if cell["engine"] == "ours" else "transformers"
        lines.append(
            f"| {name} | {L:,} | {cell['seconds']:.1f} | {cell['seconds'] / L * 1e6:,.0f} | {cell['peak'] / 1e9:.2f} | "
            f"{cell['prefill'] / 1e9:.2f} | {'0' if name == 'LongScan' else f'{needed(L) / 1e9:.1f}'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ours", default="4096,32768,131072", help="lengths of our prefill; begins with the peer's")
    parser.add_argument("--theirs", default="4096,8192", help="lengths of the peer's")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--decode", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--worker", nargs=4, metavar=("ENGINE", "FOLDER", "LENGTH", "LOGITS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        engine, folder, length, logits = args.worker
        worker(engine, folder, int(length), logits)
        return
    if args.decode:
        decode(args.decode)
        return
    lengths = {"ours": [int(n) for n in args.ours.split(",")], "theirs": [int(n) for n in args.theirs.split(",")]}
    cells = []
    with tempfile.TemporaryDirectory() as scratch:
        write_model(Path(scratch) / "model", "130m")
        logits = {engine: Path(scratch) / engine for engine in lengths}
        error = 0.0
        for turn in range(max(map(len, lengths.values()))):
            for engine, wanted in lengths.items():
                if turn < len(wanted):
                    order = ("--worker", engine, Path(scratch) / "model", wanted[turn], logits[engine])
                    cells.append(fresh(__file__, *order, threads=args.threads))
            if turn == 0:
                error = same(logits["ours"], logits["theirs"])
                step = fresh(__file__, "--decode", Path(scratch) / "model", threads=args.threads)
                missing = llama.why_not()
                peer = {} if missing else llama.compare(Path(scratch) / "model", Path(scratch), args.threads)
    ours, theirs = cells[:2]
    ratios = {
        "prefill_speed": theirs["seconds"] / ours["seconds"],
        "prefill_memory": ours["prefill"] / theirs["prefill"],
        "process_memory": ours["peak"] / theirs["peak"],
        "step_speed": step["theirs"] / step["ours"],
        "scan_share": ours["shares"]["scan"],
        "logits_difference": error,
    }
    cells.sort(key=lambda cell: (cell["engine"], cell["tokens"]))
    keep(
        args.out,
        threads=args.threads,
        ratios=ratios,
        cells=cells,
        step=step,
        llama_cpp=peer,
        needed={c["tokens"]: needed(c["tokens"]) for c in cells},
    )
    print(f"mamba-130m's shape, float32, {args.threads} thread(s); {json.dumps(machine())}\n\n{table(cells)}\n")
    at, seconds = ours["tokens"], "CPU seconds" if args.threads == 1 else "seconds"
    print(f"prefill of {at:,} tokens: {ratios['prefill_speed']:.1f}x as fast as transformers ({seconds})")
    print(f"  memory: {ratios['prefill_memory']:.1%} of transformers'; whole process {ratios['process_memory']:.0%}")
    print("  time: " + ", ".join(f"{name} {share:.0%}" for name, share in ours["shares"].items()))
    print("\n".join(decode_lines(step, peer)))
    if missing:
        print(f"llama.cpp was not compared: {missing}")
    print(f"logits differ by {error:.1e} (relative RMS)")


if __name__ == "__main__":
    main()
