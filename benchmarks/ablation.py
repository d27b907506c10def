"""How much each idea gains over the papers' recipes: one calibration and one evaluation a variant, on the demo model.

    python benchmarks/ablation.py --out build/ablation [--only NAME,...] [--lengths 4k,8k,16k] [--passkeys 20]

The variants stand in ablation.yaml. Each becomes a recipe file in the output folder, and every step is a `calibrate`
command, printed before it runs. Variants that are already there are not run again. The table is written to table.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from demo import calibrate

VARIANTS: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def recipe_file(name: str, out: Path) -> str:
    """Write the variant's recipe; the name of a bundled one is used as it is."""
    recipe, like = VARIANTS[name]["recipe"], VARIANTS[name].get("like")
    if isinstance(recipe, str):
        return recipe
    values = yaml.safe_load((RECIPES / f"{like}.yaml").read_text()) if like else {}
    for key, value in recipe.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def measure(name: str, out: Path, lengths: str, passkeys: int) -> dict[str, Any]:
    """Calibrate and evaluate one variant -> {task: {length: row}}, from the folder if it is there."""
    result = out / f"{name}.result.json"
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    method, sidecar = VARIANTS[name]["method"], str(out / f"{name}.longscan.safetensors")
    calibrate(out, f"{name}-run", "run", "--model", "demo", "--texts", "demo", "--recipe", recipe_file(name, out),
              "--method", method, "--lengths", lengths, "--out", sidecar)  # fmt: skip
    found = {}
    for task, more in (("perplexity", []), ("passkey", ["--windows", str(passkeys)])):
        document = calibrate(out, f"{name}-{task}", "eval", "--model", "demo", "--sidecar", sidecar, "--task", task,
                             "--lengths", lengths, "--methods", f"none,{method}", *more)  # fmt: skip
        found[task] = {f"{row['length']} {row['method']}": row for row in document["rows"]}
    result.write_text(json.dumps(found))
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: variants down, lengths across; perplexity with its standard error, passkeys answered."""
    some = next(iter(results.values()))
    lengths = sorted({row["length"] for row in some["perplexity"].values()})
    title = [f"ppl at {n // 256} L" for n in lengths] + [f"passkeys at {n // 256} L" for n in lengths]
    lines = ["| variant | " + " | ".join(title) + " |", "|---" * (1 + len(title)) + "|"]

    def line(label: str, found: dict[str, Any], method: str) -> None:
        cells = []
        for n in lengths:
            row = found["perplexity"][f"{n} {method}"]
            cells.append(f"{row['value']:.3f} ± {row['stderr']:.3f}")
        cells += [f"{found['passkey'][f'{n} {method}']['value']:.0%}" for n in lengths]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    line("plain model", some, "none")
    for name, found in results.items():
        line(VARIANTS[name]["about"], found, VARIANTS[name]["method"])
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/ablation"))
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, comma-separated")
    parser.add_argument("--lengths", default="4k,8k,16k")
    parser.add_argument("--passkeys", type=int, default=20, help="trials a depth")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = {name: measure(name, args.out, args.lengths, args.passkeys) for name in args.only.split(",")}
    text = table(results)
    (args.out / "table.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
