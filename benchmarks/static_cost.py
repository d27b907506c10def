"""What each kernel costs on an H200, read off its machine code: nothing here needs or uses a GPU.

    python benchmarks/static_cost.py [--json] [--only NAME ...]

Compiles for sm_90, disassembles, takes the inner loop (of kernels without one, all) and counts instructions per
(token, channel, state); per (token, channel) for the kernels without states. Each takes one of the four issue slots a
multiprocessor has a clock. MUFU is the special-function unit (exp2, rsqrt, log2): 16 results a clock. The bounds are
bytes / bandwidth, MUFU / its rate and slots / theirs; the largest binds, if there are enough warps to hide latency.
`modelled` is slots with what the warps that fit cannot hide, by issue_model.py. Mamba-2's kernels have rows of their
own: instructions of a whole program, times the programs of a launch.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from typing import Any

import torch
from issue_model import MACS, SCHEDULERS, clocks, opcode, parse, warps_resident
from ssd_cases import HEADS, N, P

from longscan.kernels.aot import Variant, build, resources, ssd_variants, tool, variants
from longscan.kernels.ssd.triton import CARRY_CONFIG, CHUNK, products

TARGET = "sm_90"
# Of an H200; thread-instructions and results a clock and multiprocessor.
PROCESSORS, ISSUE, MUFU = 132, SCHEDULERS * 32, 16
CLOCK, BANDWIDTH = 1.755e9, 4.3e12  # Hz held under load; bytes/s a copy reaches
SSD_MODEL = "mamba2-1.3b"
SHAPES = {"130m": 1536, "1.4b": 4096, "2.8b": 5120}
LENGTH, STATES = 65536, 16
# Bytes a (token, channel) in bf16. The scan reads x, delta, z and writes y; B and C add only 256 bytes a token.
TRAFFIC = {"selective_scan": 8, "selective_scan:states": 4, "causal_conv1d": 4, "token_scores": 2}
_FMA = ("FFMA", "FMUL", "FADD", "HFMA2", "FMNMX")  # float arithmetic: the pipes the multiply-adds run on
_MEMORY = ("LDG", "STG", "LDS", "STS", "LDL", "STL", "LDC", "ULDC", "ATOMG", "RED", "REDG", "SHFL")


def instructions(sass: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The instructions of a kernel and the spans [first, last] of its loops."""
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := re.match(r"^(\.L\w+):", line.strip()):
            labels[label[1]] = len(code)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            code.append(found[1])
    loops = []
    for i, text in enumerate(code):
        to = re.search(r"BRA.*?`\((\.L\w+)\)", text)
        if to and labels.get(to[1], i) < i:
            loops.append((labels[to[1]], i))
    return code, loops


def innermost(loops: list[tuple[int, int]]) -> tuple[int, int]:
    """The longest loop that holds no other."""
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return max(inner, key=lambda span: span[1] - span[0])


def read(variant: Variant) -> tuple[list[str], list[tuple[int, int]], dict[str, int]]:
    """A kernel's instructions up to its last exit, its loops, and its resources with the `warps` that fit."""
    built = build(variant, TARGET)
    code, loops = instructions(tool("nvdisasm", built.asm["cubin"], "-c"))
    found = resources(built)
    found["warps"] = warps_resident(found["registers"], found["shared_bytes"], variant.warps)
    return code[: max(i for i, text in enumerate(code) if opcode(text) == "EXIT") + 1], loops, found


def modelled(body: list[str], warps: int) -> float:
    """Issue slots a warp's pass through `body` takes, waits included."""
    return clocks([parse(text) for text in body], max(1, warps // SCHEDULERS))


def cost(variant: Variant) -> dict[str, Any]:
    """One row of the table."""
    code, loops, found = read(variant)
    first, last = innermost(loops) if variant.loop else (0, len(code) - 1)
    body = code[first : last + 1]
    kinds = Counter(map(opcode, body))

    def per_unit(*names: str) -> float:
        return round(sum(kinds[name] for name in names) / variant.units, 4)

    return {
        "name": variant.name,
        "target": TARGET,
        "config": variant.config,
        "slots": round(len(body) / variant.units, 4),
        "mufu": per_unit("MUFU"),
        "fma": per_unit(*_FMA),
        "memory": per_unit(*_MEMORY),
        "registers": found["registers"],
        "spill_bytes": found["spill_bytes"],
        "warps": found["warps"],
        "modelled": round(modelled(body, found["warps"]) / variant.units, 4),
    }


def ssd_launches() -> dict[str, tuple[list[int], float, float]]:
    """Mamba-2's kernels at SSD_MODEL's shape: how often each kind of program goes round its loop, how many programs of
    each kind there are, and the bytes that memory sees (what heads and blocks share comes from level 2 but once)."""
    heads, Q = HEADS[SSD_MODEL], products(P, N, torch.bfloat16, True)["Q"]
    chunks, blocks = LENGTH // CHUNK, CHUNK // Q
    x, B, delta, vectors = (2 * LENGTH * n for n in (heads * P, N, heads, 6 * heads))  # vectors: three, float32
    states, starts = 4 * chunks * heads * N * P, 2 * chunks * heads * N * P
    past = (blocks + 1) / 2  # blocks of a chunk that a token's block sees, its own among them
    pairs = 4 * LENGTH * Q * past
    return {
        "ssd_scan:states": ([blocks], chunks * heads, x + B + delta + vectors + states),
        "ssd_scan:carry": ([chunks // CARRY_CONFIG["AHEAD"]], heads * P * N / CARRY_CONFIG["BLOCK"], states + starts),
        "ssd_scan:pairs": ([0], LENGTH / Q * past, 2 * B + pairs),
        "ssd_scan:outputs": ([*range(blocks)], chunks * heads, 3 * x + B + vectors + pairs + starts),
    }


def ssd_costs() -> list[dict[str, Any]]:
    """A row a kernel of Mamba-2's path, in milliseconds."""
    launches, rows = ssd_launches(), []
    for variant in ssd_variants():
        if variant.name not in launches:
            continue
        rounds, programs, traffic = launches[variant.name]
        code, loops, found = read(variant)
        first, last = innermost(loops) if loops else (len(code), len(code))
        body: list[str] = []
        for count in rounds:
            body += code[:first] + code[first : last + 1] * count + code[last + 1 :]
        a_slot = 1e3 * programs * variant.warps / (SCHEDULERS * PROCESSORS * CLOCK)  # ms an instruction of every warp
        made = [parse(text) for text in body]
        rows.append({
            "name": variant.name,
            "target": TARGET,
            "instructions": round(len(body) / len(rounds)),
            "programs": programs * len(rounds),
            "registers": found["registers"],
            "spill_bytes": found["spill_bytes"],
            "warps": found["warps"],
            "bytes": 1e3 * traffic / BANDWIDTH,
            "mufu": a_slot * sum(i.opcode == "MUFU" for i in made) * ISSUE / MUFU,
            "tensor": a_slot * sum(i.macs for i in made) / MACS,
            "issue": a_slot * len(body),
            "modelled": a_slot * modelled(body, found["warps"]),
        })  # fmt: skip
        rows[-1]["bound"] = max(rows[-1][limit] for limit in ("bytes", "mufu", "tensor", "issue"))
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def bounds(row: dict[str, Any], channels: int, tokens: int = LENGTH) -> dict[str, float]:
    """Milliseconds by each limit for one row of `tokens` tokens."""
    states = STATES if row["name"].startswith("selective_") else 1
    work = tokens * channels * states
    traffic = TRAFFIC.get(row["name"], TRAFFIC.get(row["name"].split(":")[0], 0))
    return {
        "bytes": 1e3 * tokens * channels * traffic / BANDWIDTH,
        "mufu": 1e3 * work * row["mufu"] / (MUFU * PROCESSORS * CLOCK),
        "issue": 1e3 * work * row["slots"] / (ISSUE * PROCESSORS * CLOCK),
    }


def table(rows: list[dict[str, Any]], ssd: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| kernel | configuration | slots | MUFU | float | memory | registers | spills | warps | modelled |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        config = " ".join(f"{k}={v}" for k, v in row["config"].items())
        counts = " | ".join(f"{row[k]:.2f}" for k in ("slots", "mufu", "fma", "memory"))
        held = " | ".join(str(row[k]) for k in ("registers", "spill_bytes", "warps"))
        lines.append(f"| {row['name']} | {config} | {counts} | {held} | {row['modelled']:.2f} |")
    lines += ["", f"Milliseconds on an H200 for one row of {LENGTH} tokens, by bytes / MUFU / issue slots / model:", ""]
    lines += ["| kernel | configuration | " + " | ".join(f"{k} (D={v})" for k, v in SHAPES.items()) + " |"]
    lines += ["|---|---|" + "--:|" * len(SHAPES)]
    for row in rows:
        if row["name"] in TRAFFIC:
            config = " ".join(f"{k}={v}" for k, v in row["config"].items())
            cells = []
            for D in SHAPES.values():
                limits = bounds(row, D)
                limits["modelled"] = limits["issue"] * row["modelled"] / row["slots"]
                cells.append(" / ".join(f"{ms:.2f}" for ms in limits.values()))
            lines.append(f"| {row['name']} | {config} | " + " | ".join(cells) + " |")
    if not ssd:
        return "\n".join(lines)
    lines += ["", f"Milliseconds on an H200, {SSD_MODEL}, one row of {LENGTH} tokens, with z:", ""]
    limits = ("bytes", "mufu", "tensor", "issue", "bound", "modelled")
    lines += ["| kernel | instructions | programs | registers | warps | " + " | ".join(limits) + " |"]
    lines += ["|---|" + "--:|" * (4 + len(limits))]
    for row in ssd:
        counted = " | ".join(f"{row[k]:.0f}" for k in ("instructions", "programs", "registers", "warps"))
        lines.append(f"| {row['name']} | {counted} | " + " | ".join(f"{row[k]:.2f}" for k in limits) + " |")
    total = " | ".join(f"{sum(row[k] for row in ssd):.2f}" for k in limits)
    lines.append(f"| together | | | | | {total} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone, in their first configuration")
    options = parser.parse_args()
    rows, seen = [], set()
    for variant in variants():
        if variant.name == "selective_scan:carry":  # its unit is a chunk, not a token
            continue
        if options.only and (variant.name not in options.only or variant.name in seen):
            continue
        seen.add(variant.name)
        rows.append(cost(variant))
        print(f"{variant.name} {variant.config}: {rows[-1]['slots']:.2f} slots", file=sys.stderr)
    ssd = ssd_costs() if not options.only or "ssd_scan" in options.only else []
    print(json.dumps({"kernels": rows, "ssd": ssd}) if options.json else table(rows, ssd))


if __name__ == "__main__":
    main()
