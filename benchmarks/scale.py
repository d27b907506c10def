"""One rung of the ladder (recipes/ladder.py) calibrated and measured as the demo is; and what the rungs say together.

    python benchmarks/scale.py --rung mamba-0.05m --model build/mamba-0.05m [--curve build/0.05m/curve.jsonl] [--full]
    python benchmarks/scale.py --draw

The first measures the plain model, `calibrate run`'s own pick (auto), both papers' recipes, UPI and MambaExtend's form
at up to 64 times the rung's training length on the demo's texts, and writes docs/scale/RUNG.json with the training
record beside it. --full takes the evaluation's own default numbers of windows, else few. The second draws
docs/scale.png and docs/scale/table.md from whatever rungs are in docs/scale. Commands whose JSON is in the folder of
--out are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from ablation import VARIANTS, recipe_file
from demo import calibrate
from safetensors.torch import load_file

from longscan.runtime import load

DOCS = Path(__file__).resolve().parents[1] / "docs"
DATA = DOCS / "scale"
FACTORS = (1, 2, 4, 8, 16, 32, 64)
TABLE = (4, 16, 64)  # where the rivals are calibrated and read, too
OURS = "auto"
RIVALS = {  # column -> its variant in ablation.yaml
    "LongMamba as published": "longmamba",
    "DeciMamba as published": "decimamba",
    "UPI": "upi",
    "MambaExtend's form": "mambaextend",
}


def once(out: Path, name: str, *arguments: str) -> dict[str, Any]:
    """What a command printed as JSON, from the folder if it has been run there before."""
    path = out / f"{name}.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else calibrate(out, name, *arguments)
    return document


def measure(rung: str, model: str, out: Path, rivals: list[str], full: bool, samples: int) -> dict[str, Any]:
    """The rung's document: what it is, what was picked, and a value for each column, length and task."""
    lm = load(model)
    L = lm.config.train_length
    few = {} if full else {"perplexity": ["--windows", "24"], "passkey": ["--windows", "4"]}
    columns: dict[str, dict[str, Any]] = {}
    machine = {}

    def column(name: str, recipe: str, method: str, factors: tuple[int, ...]) -> dict[str, Any]:
        lengths = ",".join(str(L * factor) for factor in factors)
        sidecar = str(out / f"{name}.longscan.safetensors")
        run = once(out, f"{name}-run", "run", "--model", model, "--texts", "demo", "--recipe", recipe,
                   "--method", method, "--lengths", lengths, "--out", sidecar)  # fmt: skip
        for task in ("perplexity", "passkey"):
            document = once(
                out, f"{name}-{task}", "eval", "--model", model, "--sidecar", sidecar, "--texts", "demo",
                "--task", task, "--lengths", f"{L},{lengths}", "--methods", f"none,{method}", *few.get(task, []),
            )  # fmt: skip
            machine.update(document["machine"])
            for row in document["rows"]:
                title = "plain" if row["method"] == "none" else name
                kept = {key: row[key] for key in ("value", "stderr", "windows", "resolved_method")}
                columns.setdefault(title, {}).setdefault(str(row["length"]), {})[task] = kept
        return {key: run[key] for key in ("bands", "scores", "cost", "seconds")}

    found = column(OURS, "demo", "auto", FACTORS[1:])
    for title in rivals:
        variant = RIVALS[title]
        column(title, recipe_file(variant, out, samples), VARIANTS[variant]["method"], TABLE)
    return {
        "rung": rung,
        "train_length": L,
        "layers": len(lm.weights.layers),
        "parameters": sum(tensor.numel() for tensor in load_file(lm.source.folder / "model.safetensors").values()),
        "vocabulary": len(lm.weights.embedding),
        **found,
        "columns": columns,
        "machine": machine,
    }


def kept() -> list[dict[str, Any]]:
    """The rungs in docs/scale: Mamba-1 first, by training length and size."""
    rungs = [json.loads(path.read_text()) for path in DATA.glob("*.json")]
    return sorted(rungs, key=lambda rung: ("mamba2" in rung["rung"], rung["train_length"], rung["parameters"]))


def picks(rung: dict[str, Any], factor: int) -> tuple[str, str, str, str, str]:
    """(method, m(S), theta as log, filtered layers, fit) of a length; empty where the method has none."""
    length = rung["train_length"] * factor
    band = next(band for band in rung["bands"] if length in band["lengths"])
    score = next(row for row in rung["scores"] if (row["length"], row["method"]) == (length, band["method"]))
    if "log_theta" not in score:
        return band["method"], "", "", "", ""
    layers, mass = score["filter_layers"], band["mass"][str(length)]
    which = "all" if len(layers) == rung["layers"] else ",".join(map(str, layers))
    return band["method"], f"{mass:.2f}", f"e^{score['log_theta']:.1f}", which, score["g_fit"]


def tables(rungs: list[dict[str, Any]]) -> str:
    """Markdown: perplexity relative to the plain model at L with passkeys, at 16 and 64 L; then what was picked."""
    titles = ["plain", *RIVALS, OURS]
    lines = []
    for factor in TABLE:
        lines += [
            f"| at {factor} L | plain at L | " + " | ".join(titles) + " |",
            "|---" * (2 + len(titles)) + "|",
        ]
        for rung in rungs:
            L, cells = rung["train_length"], rung["columns"]

            def cell(title: str, length: int, cells: dict[str, Any] = cells) -> str:
                if title not in cells:
                    return ""
                one = cells[title][str(length)]
                return f"{one['perplexity']['value']:.2f} / {one['passkey']['value']:.0%}"

            row = [cell("plain", L), *(cell(title, L * factor) for title in titles)]
            lines.append(f"| {rung['rung']} | " + " | ".join(row) + " |")
        lines.append("")
    lines += ["| rung | L | cost | " + " | ".join(f"{factor} L" for factor in FACTORS[1:]) + " |", "|---" * 9 + "|"]
    for rung in rungs:
        row = [" ".join(filter(None, picks(rung, factor))) for factor in FACTORS[1:]]
        cost = f"{rung['cost']:.0f}, {rung['seconds'] / 60:.0f} min"
        lines.append(f"| {rung['rung']} | {rung['train_length']} | {cost} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def draw(rungs: list[dict[str, Any]]) -> None:
    """docs/scale.png: perplexity over that at L, passkeys, m(S) against length over L; plain dashed, auto solid."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, (growth, passkeys, mass) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for i, rung in enumerate(rungs):
        L, cells = rung["train_length"], rung["columns"]
        start = cells["plain"][str(L)]["perplexity"]["value"]
        for title, style in (("plain", "--"), (OURS, "-")):
            found = [cells[title][str(L * factor)] for factor in FACTORS]
            label = rung["rung"] if title == OURS else None
            line = {"ls": style, "color": f"C{i}", "label": label, "marker": "o", "ms": 3}
            growth.plot(FACTORS, [math.log(one["perplexity"]["value"] / start) for one in found], **line)
            passkeys.plot(FACTORS, [one["passkey"]["value"] for one in found], **line)
        picked = [(factor, float(picks(rung, factor)[1])) for factor in FACTORS[1:] if picks(rung, factor)[1]]
        mass.plot(*zip(*picked), "o-", ms=3, color=f"C{i}")
    growth.set(ylabel="loss above the plain model's at L, nats per token", title="plain dashed, auto solid")
    passkeys.set(ylabel="passkeys answered", ylim=(-0.03, 1.03))
    mass.set(ylabel="mass factor m(S) picked", yscale="log")
    for axes in (growth, passkeys, mass):
        axes.set_xscale("log", base=2)
        axes.set_xticks(FACTORS, [f"{factor} L" for factor in FACTORS])
    growth.legend(frameon=False, fontsize=8)
    plt.savefig(DOCS / "scale.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rung", help="its name in docs/scale")
    parser.add_argument("--model", help="the rung's checkpoint, or demo, demo-mamba2")
    parser.add_argument("--curve", type=Path, help="the training's curve.jsonl, kept beside the result")
    parser.add_argument("--out", type=Path, default=Path("build/scale"), help="sidecars and journals")
    parser.add_argument("--full", action="store_true", help="the evaluation's own default numbers of windows")
    parser.add_argument("--rivals", default=",".join(RIVALS), help="columns beside plain and auto, comma-separated")
    parser.add_argument("--samples", type=int, default=8, help="held-out windows a length in the rivals' searches")
    parser.add_argument("--draw", action="store_true", help="only the table and the figure of all rungs")
    args = parser.parse_args()
    DATA.mkdir(exist_ok=True)
    if not args.draw:
        if not (args.rung and args.model):
            parser.error("give --rung and --model, or --draw")
        out = args.out / args.rung
        out.mkdir(parents=True, exist_ok=True)
        rivals = [name for name in args.rivals.split(",") if name]
        if unknown := [name for name in rivals if name not in RIVALS]:
            parser.error(f"no rival {unknown[0]!r}; choose from {', '.join(RIVALS)}")
        document = measure(args.rung, args.model, out, rivals, args.full, args.samples)
        (DATA / f"{args.rung}.json").write_text(json.dumps(document) + "\n")
        if args.curve:
            (DATA / f"{args.rung}-training.jsonl").write_bytes(args.curve.read_bytes())
    rungs = kept()
    text = tables(rungs)
    (DATA / "table.md").write_text(text)
    draw(rungs)
    print(text)


if __name__ == "__main__":
    main()
