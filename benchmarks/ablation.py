"""How much each idea gains over the papers' recipes: one calibration and one evaluation a variant, on the demo model.

    python benchmarks/ablation.py [--out build/ablation] [--only NAME,...] [--lengths 4k,8k,16k] [--windows 32]

The variants stand in ablation.yaml. Each becomes a recipe file in the output folder and a `calibrate run`, printed
before it starts; all are read on the same windows and passkeys of the evaluation text, so that differences are paired.
Variants that are already in the folder are not run again. The table goes to table.md, every loss and answer to
results.json.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from demo import calibrate

from longscan.calibrate.lengths import parse_lengths
from longscan.calibrate.search.tasks import passkey_answered, tail_losses
from longscan.calibrate.texts.prompts import DEPTHS, passkey_trials
from longscan.calibrate.texts.sources import read_texts
from longscan.calibrate.texts.tokens import encode
from longscan.calibrate.texts.windows import at_length, token_windows
from longscan.runtime import load

VARIANTS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
TAIL, BATCH = 100, 16384


def recipe_file(name: str, out: Path, samples: int) -> str:
    """Write the variant's recipe; the name of a bundled one is used as it is."""
    recipe, like = VARIANTS[name]["recipe"], VARIANTS[name].get("like")
    if isinstance(recipe, str):
        return recipe
    values = yaml.safe_load((RECIPES / f"{like}.yaml").read_text()) if like else {}
    for key, value in {"objective": "mixed", "samples": samples, **recipe}.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


class Bench:
    """The evaluation text's windows and passkeys, the same for every variant."""

    def __init__(self, lengths: list[int], windows: int, passkeys: int) -> None:
        self.lengths, plain = lengths, load("demo")
        documents = encode(plain, read_texts("demo", role="eval"))
        self.windows = token_windows(documents, lengths[-1], windows, tail=TAIL, seed=0)
        depths = [depth for _ in range(passkeys) for depth in DEPTHS]
        self.trials = {n: passkey_trials(plain, documents, n, depths, "evaluate", 0) for n in lengths}

    def read(self, sidecar: Path | None, method: str) -> dict[str, Any]:
        """{length: {losses, answered}} of one sidecar."""
        lm, found = load("demo", sidecar), {}
        for n in self.lengths:
            losses = tail_losses(lm, at_length(self.windows, n), TAIL, method, BATCH)
            answered = passkey_answered(lm, self.trials[n], method, BATCH)[0]
            found[str(n)] = {"losses": losses.tolist(), "answered": [int(right) for right in answered]}
        return found


def measure(name: str, bench: Bench, out: Path, samples: int) -> dict[str, Any]:
    """Calibrate and evaluate one variant, or take it from the folder."""
    result = out / f"{name}.result.json"
    if not result.exists():
        sidecar, document = None, {}
        if name != "plain":
            sidecar = out / f"{name}.longscan.safetensors"
            document = calibrate(
                out, f"{name}-run", "run", "--model", "demo", "--texts", "demo",
                "--recipe", recipe_file(name, out, samples), "--method", VARIANTS[name]["method"],
                "--lengths", ",".join(map(str, bench.lengths)), "--out", str(sidecar),
                program=VARIANTS[name].get("program"),
            )  # fmt: skip
        lengths = bench.read(sidecar, VARIANTS[name]["method"] if sidecar else "none")
        kept = {key: document.get(key) for key in ("cost", "seconds", "bands", "scores")}
        result.write_text(json.dumps({"lengths": lengths, **kept}))
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def table(results: dict[str, dict[str, Any]], L: int = 256) -> str:
    """Markdown: variants down, lengths across; perplexity with the standard error of its difference from plain's."""
    plain = results["plain"]["lengths"]
    lengths = list(plain)
    title = [f"ppl at {int(n) // L} L" for n in lengths] + [f"passkeys at {int(n) // L} L" for n in lengths]
    lines = ["| variant | " + " | ".join(title) + " | cost |", "|---" * (2 + len(title)) + "|"]
    for name, found in results.items():
        cells = []
        for n in lengths:
            losses, base = (torch.tensor(one[n]["losses"]) for one in (found["lengths"], plain))
            value, before = (math.exp(float(one.mean())) for one in (losses, base))
            # First-order influence of each window on the difference of two exp(mean loss).
            error = float((value * losses - before * base).std()) / math.sqrt(len(losses))
            cells.append(f"{value:.3f}" + (f" ± {error:.3f}" if name != "plain" else ""))
        cells += ["{:.0%}".format(sum(a := found["lengths"][n]["answered"]) / len(a)) for n in lengths]
        about = "plain model" if name == "plain" else VARIANTS[name]["about"]
        lines.append(f"| {about} | " + " | ".join(cells) + f" | {found['cost'] or ''} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/ablation"))
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, comma-separated")
    parser.add_argument("--lengths", default="4k,8k,16k")
    parser.add_argument("--samples", type=int, default=8, help="held-out windows a length in the searches")
    parser.add_argument("--windows", type=int, default=32, help="evaluation windows")
    parser.add_argument("--passkeys", type=int, default=6, help="trials a depth")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(parse_lengths(args.lengths), args.windows, args.passkeys)
    names = ["plain", *args.only.split(",")]
    results = {name: measure(name, bench, args.out, args.samples) for name in names}
    text = table(results)
    (args.out / "table.md").write_text(text)
    (args.out / "results.json").write_text(json.dumps(results) + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
