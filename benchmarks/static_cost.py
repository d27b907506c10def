"""What each kernel costs on an H200, read off its machine code: nothing here needs or uses a GPU.

    python benchmarks/static_cost.py [--json] [--only NAME ...]

Compiles for sm_90, disassembles, takes the inner loop (of kernels without one, all) and counts instructions per
(token, channel, state); per (token, channel) for the kernels without states. Each takes one of the four issue slots a
multiprocessor has a clock. MUFU is the special-function unit (exp2, rsqrt, log2): 16 results a clock. The bounds are
bytes / bandwidth, MUFU / its rate and slots / theirs; the largest binds, if there are enough warps to hide latency.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from typing import Any

from longscan.kernels.aot import Variant, build, resources, tool, variants

TARGET = "sm_90"
PROCESSORS, ISSUE, MUFU = 132, 4 * 32, 16  # of an H200; thread-instructions and results a clock and multiprocessor
CLOCK, BANDWIDTH = 1.755e9, 4.3e12  # Hz held under load; bytes/s a copy reaches
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
            code.append(re.sub(r"^@!?U?P\w+\s+", "", found[1]))
    loops = []
    for i, text in enumerate(code):
        to = re.search(r"BRA.*?`\((\.L\w+)\)", text)
        if to and labels.get(to[1], i) < i:
            loops.append((labels[to[1]], i))
    return code, loops


def inner_loop(code: list[str], loops: list[tuple[int, int]]) -> list[str]:
    """The longest loop that holds no other."""
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    first, last = max(inner, key=lambda span: span[1] - span[0])
    return code[first : last + 1]


def cost(variant: Variant) -> dict[str, Any]:
    """One row of the table."""
    built = build(variant, TARGET)
    code, loops = instructions(tool("nvdisasm", built.asm["cubin"], "-c"))
    if variant.loop:
        body = inner_loop(code, loops)
    else:
        body = code[: max(i for i, text in enumerate(code) if text.startswith("EXIT")) + 1]
    kinds = Counter(re.split(r"[. ]", text)[0] for text in body)

    def per_unit(*names: str) -> float:
        return round(sum(kinds[name] for name in names) / variant.units, 4)

    found = resources(built)
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
    }


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


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| kernel | configuration | slots | MUFU | float | memory | registers | spills |"]
    lines += ["|---|---|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        config = " ".join(f"{k}={v}" for k, v in row["config"].items())
        counts = " | ".join(f"{row[k]:.2f}" for k in ("slots", "mufu", "fma", "memory"))
        lines.append(f"| {row['name']} | {config} | {counts} | {row['registers']} | {row['spill_bytes']} |")
    lines += ["", f"Milliseconds on an H200 for one row of {LENGTH} tokens, by bytes / MUFU / issue slots:", ""]
    lines += ["| kernel | configuration | " + " | ".join(f"{k} (D={v})" for k, v in SHAPES.items()) + " |"]
    lines += ["|---|---|" + "--:|" * len(SHAPES)]
    for row in rows:
        if row["name"] in TRAFFIC:
            config = " ".join(f"{k}={v}" for k, v in row["config"].items())
            cells = [" / ".join(f"{ms:.2f}" for ms in bounds(row, D).values()) for D in SHAPES.values()]
            lines.append(f"| {row['name']} | {config} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these kernels only, in their first configuration")
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
    print(json.dumps({"kernels": rows}) if options.json else table(rows))


if __name__ == "__main__":
    main()
