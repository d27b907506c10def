"""Calibrate a demo model, measure it at 1 to 64 times its training length, and say what got better.

    python benchmarks/demo.py --out build/demo [--model demo-mamba2] [--full] [--recipes paper-longmamba]

`make demo` runs this. Each step is a `calibrate` command anyone can type; it is printed before it runs. With --full the
evaluation uses the command's own default number of windows, else few, so that it takes minutes. The JSON documents
stay in the folder given with --out; the table is written beside them as table.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

LENGTHS = [256 * 2**k for k in range(7)]
METHODS = ("none", "filter", "decimate", "both", "auto")


def calibrate(out: Path, name: str, *arguments: str, program: str | None = None) -> dict[str, Any]:
    """Run one command, or a program of this folder in its place; keep its JSON document as NAME.json and return it."""
    print(f"$ {program or 'calibrate'} {shlex.join(arguments)}", flush=True)
    command = ["-m", "longscan.calibrate"] if program is None else [str(Path(__file__).with_name(program))]
    done = subprocess.run([sys.executable, *command, *arguments, "--json"], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(done.returncode)
    (out / f"{name}.json").write_bytes(done.stdout)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def cells(document: dict[str, Any], label: str | None = None) -> dict[tuple[int, str], dict[str, Any]]:
    """Rows by length and method; `label` renames "auto" (a published recipe's column)."""
    return {
        (row["length"], label or row["method"]): row
        for row in document["rows"]
        if label is None or row["method"] == "auto"
    }


def table(perplexity: dict[Any, Any], passkey: dict[Any, Any], columns: list[str]) -> str:
    """Markdown: perplexity and passkeys answered, lengths down, methods across."""
    lines = []
    for title, found, form in (
        ("perplexity per byte", perplexity, "{:.2f}"),
        ("passkeys answered", passkey, "{:.0%}"),
    ):
        windows = next(iter(found.values()))["windows"]
        lines += [f"| {title} ({windows} windows) | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for length in LENGTHS:
            row = []
            for column in columns:
                cell = found[length, column]
                text = form.format(cell["value"])
                row.append(f"{text} ({cell['resolved_method']})" if column == "auto" else text)
            lines.append(f"| {length // LENGTHS[0]}x = {length} | " + " | ".join(row) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--model", choices=["demo", "demo-mamba2"], default="demo")
    parser.add_argument("--full", action="store_true", help="the evaluation's own default numbers of windows")
    parser.add_argument("--recipes", default="", help="published recipes to compare with")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lengths = ",".join(map(str, LENGTHS))
    few = {"perplexity": ["--windows", "24"], "passkey": ["--windows", "4"]}
    windows: dict[str, list[str]] = {} if args.full else few

    def evaluate(name: str, sidecar: Path, methods: str) -> list[dict[str, Any]]:
        common = ["--model", args.model, "--sidecar", str(sidecar), "--lengths", lengths, "--methods", methods]
        return [
            calibrate(args.out, f"{name}-{task}", "eval", *common, "--task", task, *windows.get(task, []))
            for task in ("perplexity", "passkey")
        ]

    sidecar = args.out / f"{args.model}.longscan.safetensors"
    calibrate(args.out, "run", "run", "--model", args.model, "--out", str(sidecar))
    documents = evaluate(args.model, sidecar, ",".join(METHODS))
    found = [cells(document) for document in documents]
    columns = list(METHODS)
    for recipe in filter(None, args.recipes.split(",")):
        other = args.out / f"{recipe}.longscan.safetensors"
        calibrate(args.out, recipe, "run", "--model", args.model, "--texts", "demo", "--recipe", recipe,
                  "--lengths", ",".join(map(str, LENGTHS[1:])), "--out", str(other))  # fmt: skip
        for have, document in zip(found, evaluate(recipe, other, "none,auto")):
            have |= cells(document, recipe)
        columns.insert(-1, recipe)
    text = table(found[0], found[1], columns)
    (args.out / "table.md").write_text(text)
    print("\n" + text)
    far, near = LENGTHS[-1], LENGTHS[0]
    ppl, key = found
    print(
        f"At {far} bytes, {far // near}x the training length, perplexity is {ppl[far, 'none']['value']:.2f} plain and "
        f"{ppl[far, 'auto']['value']:.2f} calibrated ({ppl[near, 'none']['value']:.2f} at the training length);\n"
        f"passkeys answered: {key[far, 'none']['value']:.0%} plain, {key[far, 'auto']['value']:.0%} calibrated."
    )


if __name__ == "__main__":
    main()
