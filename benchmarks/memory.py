"""Peak memory of a prefill against the prompt's length: the bundled model, one fresh process a length and method.

    python benchmarks/memory.py [--sidecar build/demo/demo.longscan.safetensors] [--lengths 16384,131072,1048576]

Peak is the process's peak resident memory (getrusage) less the token ids themselves (8 bytes a token); growth is
against the shortest length. Without a sidecar only the plain model is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

LENGTHS = (16 * 1024, 128 * 1024, 1024 * 1024)


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def worker(sidecar: str | None, method: str, length: int) -> None:
    """One prefill of `length` random bytes; prints a JSON line."""
    from longscan.runtime import load

    lm = load("demo", sidecar)
    ids = torch.randint(32, 127, (1, length), generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    out = lm.prefill(ids, method=method)
    seconds = time.perf_counter() - began
    assert out.state.length.item() == length
    print(json.dumps({"plan": out.plan.method, "seconds": seconds, "peak": peak_bytes() - 8 * length}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sidecar")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--worker", nargs=2, metavar=("METHOD", "LENGTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.sidecar, args.worker[0], int(args.worker[1]))
        return
    lengths = [int(n) for n in args.lengths.split(",")]
    more = ["--sidecar", args.sidecar] if args.sidecar else []
    print(f"{'method':10}{'tokens':>10}{'peak MiB':>10}{'growth':>9}{'us a token':>12}")
    for method in ("none", "filter", "decimate", "both") if args.sidecar else ("none",):
        first = 0
        for length in lengths:
            command = [sys.executable, __file__, *more, "--worker", method, str(length)]
            found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
            first = first or found["peak"]
            growth, cost = found["peak"] / first - 1, found["seconds"] / length * 1e6
            print(f"{method:10}{length:>10}{found['peak'] / 2**20:>10.1f}{growth:>9.1%}{cost:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
