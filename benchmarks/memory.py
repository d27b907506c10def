"""Peak memory and time of a prefill against the prompt's length, one fresh process a length and method.

    python benchmarks/memory.py [--sidecar build/demo/demo.longscan.safetensors] [--lengths 16k,128k,1m] [--out FILE]
    python benchmarks/memory.py --shape 1.4b --device cuda --lengths 64k,256k,1m

On a CPU, peak is the process's peak resident memory less the token ids themselves (8 bytes a token), and times are CPU
seconds of one thread; on a GPU, peak is the most that torch held there, less the ids. Growth is against the shortest
length. Without --shape the model is the bundled one, else a random one of a published shape in the device's own dtype.
Without a sidecar only the plain model is measured.
Ends with status 1 if memory grows by 5% or more; on a GPU also if the peak passes the weights by 2 GiB, or the time a
token changes by more than 5%.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import fresh, keep, peak_bytes
from shapes import SHAPES, write_model

from longscan.calibrate.lengths import parse_lengths
from longscan.calibrate.speed import weight_bytes
from longscan.runtime import load

GROWTH, DRIFT, BEYOND_WEIGHTS = 0.05, 0.05, 2 * 2**30


def worker(model: str, sidecar: str | None, device: str, method: str, length: int) -> None:
    """One prefill of `length` random tokens; prints a JSON line."""
    lm = load(model, sidecar, device=device)
    low, high = (32, 127) if model == "demo" else (0, lm.weights.embedding.shape[0])
    ids = torch.randint(low, high, (1, length), generator=torch.Generator().manual_seed(0))
    on_gpu = lm.device.type == "cuda"
    lm.prefill(ids[:, :4096], method=method)  # loads or compiles the kernels
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    clock = time.perf_counter if on_gpu else time.process_time
    began = clock()
    out = lm.prefill(ids, method=method)
    assert out.state.length.item() == length  # waits for the GPU, too
    seconds = clock() - began
    peak = (torch.cuda.max_memory_allocated() if on_gpu else peak_bytes()) - 8 * length
    weights = weight_bytes(lm.weights)
    print(json.dumps({"plan": out.plan.method, "seconds": seconds, "peak": peak, "weights": weights}))


def too_much(cells: list[dict[str, Any]], device: str) -> list[str]:
    """What is not as promised, in words."""
    found = []
    for cell in cells:
        where = f"{cell['method']} at {cell['tokens']} tokens"
        if cell["growth"] >= GROWTH:
            found.append(f"{where}: the peak grew by {cell['growth']:.1%}")
        if device == "cuda" and cell["peak"] > cell["weights"] + BEYOND_WEIGHTS:
            found.append(f"{where}: the peak is {(cell['peak'] - cell['weights']) / 2**30:.2f} GiB beyond the weights")
        if device == "cuda" and abs(cell["drift"]) > DRIFT:
            found.append(f"{where}: the time a token changed by {cell['drift']:.1%}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sidecar")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--lengths", default="16k,128k,1m")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--worker", nargs=3, metavar=("MODEL", "METHOD", "LENGTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        model, method, length = args.worker
        worker(model, args.sidecar, args.device, method, int(length))
        return
    lengths = parse_lengths(args.lengths)
    more = ["--device", args.device, *(["--sidecar", args.sidecar] if args.sidecar else [])]
    cells: list[dict[str, Any]] = []
    print(f"{'method':10}{'tokens':>10}{'peak MiB':>10}{'growth':>9}{'us a token':>12}")
    with tempfile.TemporaryDirectory() as scratch:
        if args.shape:
            write_model(Path(scratch), args.shape, torch.bfloat16 if args.device == "cuda" else torch.float32)
        model = scratch if args.shape else "demo"
        for method in ("none", "filter", "decimate", "both") if args.sidecar else ("none",):
            first: dict[str, Any] = {}
            for length in lengths:
                cell = fresh(
                    __file__, *more, "--worker", model, method, length, threads=1 if args.device == "cpu" else None
                )
                cell |= {"method": method, "tokens": length, "us_a_token": cell["seconds"] / length * 1e6}
                first = first or cell
                cell["growth"] = cell["peak"] / first["peak"] - 1
                cell["drift"] = cell["us_a_token"] / first["us_a_token"] - 1
                cells.append(cell)
                line = f"{method:10}{length:>10}{cell['peak'] / 2**20:>10.1f}{cell['growth']:>9.1%}"
                print(f"{line}{cell['us_a_token']:>12.2f}", flush=True)
    keep(args.out, device=args.device, shape=args.shape or "demo", cells=cells)
    wrong = too_much(cells, args.device)
    if wrong:
        raise SystemExit("Error: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
