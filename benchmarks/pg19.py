"""PG-19 by the published protocol, ours beside the published rows.

    python benchmarks/pg19.py --model state-spaces/mamba-1.4b [--sidecar FILE|REPO] [--texts SOURCE]

Without --sidecar the model is calibrated first, on PG-19's training books by its own recipe. Windows of S tokens of
every test book start at 0, s, 2s, ... with s = max(10, (len - S) // 10); the loss is taken on the last 100 tokens, the
last 101 are protected from decimation, and perplexity is exp of the mean of the windows' losses. --texts takes a
book or a folder of books (.txt) in place of the Hub's copy. The published numbers (float32; arXiv 2504.16053 and
2406.14528) are in pg19.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from demo import calibrate

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text())


def table(document: dict[str, Any], published: dict[str, list[float]]) -> str:
    """Markdown: lengths across; our rows by method, then the published ones where a length is the same."""
    lengths = sorted({row["length"] for row in document["rows"]})
    cells = {(row["method"], row["length"]): row for row in document["rows"]}
    lines = ["| | " + " | ".join(f"{n:,}" for n in lengths) + " |", "|---" * (1 + len(lengths)) + "|"]
    for method in dict.fromkeys(row["method"] for row in document["rows"]):
        values = [cells[method, n] for n in lengths]
        lines.append(f"| ours: {method} | " + " | ".join(f"{row['value']:.2f}" for row in values) + " |")
    for name, row in published.items():
        known = dict(zip(PUBLISHED["lengths"], row))
        values = [f"{known[n]:.2f}" if n in known else "" for n in lengths]
        lines.append(f"| published: {name} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sidecar")
    parser.add_argument("--texts", default="emozilla/pg19#test@text")
    parser.add_argument("--calibration-texts", default="emozilla/pg19#train@text")
    parser.add_argument("--lengths", default=",".join(map(str, PUBLISHED["lengths"])))
    parser.add_argument("--run", default="", help="more options of `calibrate run`, in one string")
    parser.add_argument("--methods", default="none,filter,decimate,both,auto")
    parser.add_argument("--windows", type=int, help="at most so many windows a length")
    parser.add_argument("--dtype", default="float32", help="the published numbers are float32")
    parser.add_argument("--out", type=Path, default=Path("build/pg19"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    name = Path(args.model).name
    sidecar = args.sidecar
    if not sidecar:
        sidecar = str(args.out / f"{name}.longscan.safetensors")
        calibrate(args.out, f"{name}-run", "run", "--model", args.model, "--texts", args.calibration_texts,
                  "--dtype", args.dtype, "--out", sidecar, *shlex.split(args.run))  # fmt: skip
    more = ["--windows", str(args.windows)] if args.windows else []
    document = calibrate(args.out, f"{name}-pg19", "eval", "--model", args.model, "--sidecar", sidecar,
                         "--texts", args.texts, "--protocol", "pg19", "--lengths", args.lengths,
                         "--methods", args.methods, "--dtype", args.dtype, *more)  # fmt: skip
    published = PUBLISHED["models"].get(name.removesuffix("-hf"), {})
    text = table(document, published)
    (args.out / f"{name}.md").write_text(text + "\n")
    machine = document["machine"]
    print(
        f"\n{args.model}, perplexity on {args.texts}, {machine['device']}, torch {machine['torch']}, {machine['dtype']}"
    )
    print(text)
    if not published:
        print(f"\nno published rows for {name}; there are some for {', '.join(PUBLISHED['models'])}")


if __name__ == "__main__":
    main()
