"""The scans of both generations beside their peers on a GPU, then whole models: one command.

    python benchmarks/kernels.py [--out docs] [--models 130m ...] [--lengths 65536 ...] [--batches 1 ...] [--no-whole]
                                 [--tune]

Every kernel is checked against a float64 oracle on sampled channels first; one that is wrong is named and not timed.
Writes kernels.csv (medians with 20/80 quantiles, bandwidth, share of the bound of docs/static_cost.json) and
kernels.png. --tune times the configurations of kernels/scan/triton_plan.py over chunk counts instead: its table is what
plan_scan should reproduce.

The peer needs a CUDA toolkit beside torch, and is built for this chip only (a few minutes):

    MAMBA_SKIP_CUDA_BUILD=TRUE pip download --no-deps --no-binary mamba-ssm --no-build-isolation mamba-ssm
    tar xf mamba_ssm-*.tar.gz
    cd mamba_ssm-*/        # in setup.py leave one -gencode pair: "arch=compute_90,code=sm_90"
    MAMBA_FORCE_BUILD=TRUE pip install --no-build-isolation --no-deps . && pip install einops ninja transformers

Without it its rows are left out, and a line says so.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from oracle import scan_oracle
from sequential_scan import sequential_scan
from ssd_cases import HEADS, SSDCase, ssd_error, ssd_inputs, ssd_kernels
from static_cost import SHAPES, bounds
from timing import bandwidth, machine, quantiles
from torch import Tensor
from whole_models import whole_models

from longscan.kernels import selective_scan
from longscan.kernels.scan import triton as scan_triton
from longscan.kernels.scan.triton_plan import SCAN_CONFIGS, fits, plan_scan
from longscan.kernels.shared.arguments import Scan

DOCS = Path(__file__).resolve().parents[1] / "docs"
N, BOUND, SAMPLED = 16, 1e-2, 8  # states; relative RMS a bfloat16 result may be off; channels the oracle looks at
TORCH_LONGEST = 4096  # the torch reference is a Python loop over time
LENGTHS = (*(2**k for k in range(11, 21)), 65537)  # the last: no multiple of a peer's block
COLUMNS = ("model", "batch", "length", "kernel", "error", "low_ms", "median_ms", "high_ms", "gb_s", "bound_share")


@dataclass(frozen=True)
class Case:
    """One shape: a model's d_inner, batch and tokens."""

    model: str
    channels: int
    batch: int
    length: int

    @property
    def bytes(self) -> int:
        """What a scan must move in bfloat16: x, delta, z, y, B and C."""
        return 2 * self.batch * self.length * (4 * self.channels + 2 * N)


def inputs(case: Case, device: str) -> dict[str, Tensor]:
    """Arguments as a trained model would give them: delta between 1e-3 and 1e-1, A = -1 ... -N."""
    g = torch.Generator(device).manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device, dtype=torch.bfloat16)

    B, L, D = case.batch, case.length, case.channels
    bias = torch.expm1(torch.logspace(-3, -1, D, device=device)).log()  # the inverse of softplus
    return {
        "x": rand(B, L, D), "delta": rand(B, L, D).mul_(0.3),
        "A": -torch.arange(1.0, N + 1, device=device).repeat(D, 1),
        "B": rand(B, L, N), "C": rand(B, L, N),
        "D": torch.ones(D, device=device), "z": rand(B, L, D), "delta_bias": bias,
    }  # fmt: skip


def kernels(a: dict[str, Tensor], device: str) -> Iterator[tuple[str, dict[str, Tensor], Callable[[], Tensor]]]:
    """(name, arguments the oracle needs, a call that returns y (B, L, D))."""
    filtered = {**a, "threshold": torch.nn.functional.softplus(a["delta_bias"])}  # keeps about half of the tokens
    yield "longscan", a, lambda: selective_scan(**a, backend="triton")[0]
    yield "longscan filtered", filtered, lambda: selective_scan(**filtered, backend="triton")[0]
    yield "sequential triton", a, lambda: sequential_scan(*a.values())
    if a["x"].shape[1] <= TORCH_LONGEST:
        yield "torch", a, lambda: selective_scan(**a, backend="reference")[0]
    if device == "cuda" and (peer := cuda_scan(a)) is not None:
        yield "mamba-ssm cuda", a, peer


def cuda_scan(a: dict[str, Tensor]) -> Callable[[], Tensor] | None:
    """mamba-ssm's CUDA scan in its own layout (B, D, L), transposed before it is timed; None if not installed."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except ImportError:
        return None
    x, delta, B, C, z = (a[k].transpose(1, 2).contiguous() for k in ("x", "delta", "B", "C", "z"))
    return lambda: selective_scan_fn(x, delta, a["A"], B, C, a["D"], z, a["delta_bias"], True).transpose(1, 2)


def error(y: Tensor, a: dict[str, Tensor]) -> float:
    """Relative RMS of y against float64, over sampled channels of the last row of the batch."""
    channels = y.shape[2]
    at = torch.linspace(0, channels - 1, min(SAMPLED, channels)).long().to(y.device)
    part = {
        k: v[-1:, :, at] if k in ("x", "delta", "z") else v[-1:] if k in ("B", "C") else v[at] for k, v in a.items()
    }
    wanted = scan_oracle(**part)
    return float((y[-1:, :, at].double().cpu() - wanted).norm() / wanted.norm())


def measure(case: Case | SSDCase, device: str) -> list[dict[str, Any]]:
    """One row a kernel; a kernel whose result is wrong is reported on stderr and has no row."""
    if isinstance(case, SSDCase):
        bound = 1e3 * case.bytes / bandwidth(device)
        a, calls, off = ssd_inputs(case, device), ssd_kernels, ssd_error
    else:
        cost = json.loads((DOCS / "static_cost.json").read_text())["kernels"][0]
        bound = max(bounds(cost, case.channels, case.batch * case.length).values())
        a, calls, off = inputs(case, device), kernels, error
    rows = []
    for name, given, run in calls(a, device):
        found = off(run(), given)
        where = f"{case.model} batch {case.batch} length {case.length} {name}"
        if not found <= BOUND:  # NaN is wrong, too
            print(
                f"Error: {where}: the result is off by {found:.1e} (relative RMS); no speed reported", file=sys.stderr
            )
            continue
        low, median, high = quantiles(run, device)
        rows.append(
            {
                "model": case.model, "batch": case.batch, "length": case.length, "kernel": name,
                "error": f"{found:.1e}", "low_ms": low, "median_ms": median, "high_ms": high,
                "gb_s": case.bytes / median / 1e6, "bound_share": bound / median,
            }
        )  # fmt: skip
        print(f"{where}: {median:.3f} ms ({low:.3f} to {high:.3f}), {case.bytes / median / 1e6:.0f} GB/s, "
              f"{bound / median:.0%} of the bound, error {found:.1e}", flush=True)  # fmt: skip
    return rows


def tune(case: Case, device: str) -> None:
    """Every configuration over chunk counts, fastest first, and what plan_scan picks."""
    a, found = inputs(case, device), []
    ordered = [a[k] for k in ("x", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    for config in (c for c in SCAN_CONFIGS if fits(c, case.channels, N)):
        most = plan_scan(case.batch, case.channels, case.length, N)[1]
        for chunks in sorted({1, *(max(1, round(most * part)) for part in (0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.5, 2))}):

            def run(config=config, chunks=chunks) -> Tensor:
                return scan_triton.selective_scan(Scan(*ordered, True, *[None] * 5), chunks=chunks, config=config)[0]

            if error(run(), a) <= BOUND:
                found.append((quantiles(run, device)[1], config, chunks))
    planned = plan_scan(case.batch, case.channels, case.length, N)
    print(f"{case.model} batch {case.batch} length {case.length}; planned: {planned[0]}, {planned[1]} chunks")
    for ms, config, chunks in sorted(found, key=lambda row: row[0])[:5]:
        print(f"  {ms:9.3f} ms  {config}, {chunks} chunks", flush=True)


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Milliseconds against length, one panel a model and batch."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = sorted({(r["model"], r["batch"]) for r in rows}, key=lambda p: (p[1], p[0]))
    columns = min(3, len(panels))
    figure, axes = plt.subplots(
        -(-len(panels) // columns), columns, figsize=(4 * columns, 3.2 * -(-len(panels) // columns)),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for panel, (model, batch) in zip(axes.flat, panels):
        for kernel in dict.fromkeys(r["kernel"] for r in rows):
            own = [r for r in rows if (r["model"], r["batch"], r["kernel"]) == (model, batch, kernel)]
            panel.plot([r["length"] for r in own], [r["median_ms"] for r in own], "o-", ms=3, label=kernel)
            panel.fill_between(
                [r["length"] for r in own], [r["low_ms"] for r in own], [r["high_ms"] for r in own], alpha=0.2
            )
        panel.set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms", title=f"{model}, batch {batch}")
    axes.flat[0].legend(frameon=False, fontsize=7)
    figure.suptitle(title, fontsize=8)
    plt.savefig(path, dpi=140)


def cases(models: list[str], lengths: list[int], batches: list[int], device: str) -> Iterator[Case | SSDCase]:
    """The shapes that fit; a line on stderr names those that do not."""
    for model in models:
        for batch in batches:
            for length in lengths:
                ssd = model in HEADS
                case = SSDCase(model, batch, length) if ssd else Case(model, SHAPES[model], batch, length)
                free = torch.cuda.mem_get_info()[0] if device == "cuda" else math.inf
                if 2.5 * case.bytes > free:  # the peer has copies of its own
                    print(f"left out: {model} batch {batch} length {length} needs {2.5 * case.bytes / 2**30:.0f} GiB",
                          file=sys.stderr)  # fmt: skip
                    continue
                yield case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for kernels.csv, kernels.png and models.csv")
    parser.add_argument("--models", nargs="+", choices=[*SHAPES, *HEADS], default=[*SHAPES, *HEADS])
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--no-whole", action="store_true", help="leave out prefill and decode of whole models")
    parser.add_argument("--tune", action="store_true", help="time the configurations instead")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # the tests: small, in the interpreter
    args = parser.parse_args()
    device = "cpu" if args.tiny else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("Error: no CUDA device; run this on a machine with one (benchmarks/kernels_cpu.py needs none)")
    chosen = [Case("tiny", 6, 1, 6)] if args.tiny else cases(args.models, args.lengths, args.batches, device)
    print(machine(device))
    if args.tune:
        for case in chosen:
            if isinstance(case, Case):
                tune(case, device)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [row for case in chosen for row in measure(case, device)]
    if not any(row["kernel"].startswith("mamba-ssm") for row in rows):
        print("mamba-ssm's CUDA scan is not installed: its rows are left out (see the docstring)", file=sys.stderr)
    if not rows:
        raise SystemExit("Error: nothing was measured; every shape was left out or wrong, see above")
    with (args.out / "kernels.csv").open("w", newline="") as file:
        file.write(f"# {machine(device)}\n")
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    plot(rows, machine(device), args.out / "kernels.png")
    if not args.no_whole:
        whole_models(args.out / "models.csv", device, tiny=args.tiny)


if __name__ == "__main__":
    main()
