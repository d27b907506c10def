"""How long `calibrate run` takes on a checkpoint of mamba-1.4b's shape with random weights.

    python benchmarks/calibrate_gpu.py --tokenizer tokenizer.json [--device cuda] [--out build/calibrate-gpu]

The recipe is mamba-1.4b's own, so windows, lengths (4k to 64k) and candidates are those of a real run; with random
weights the picks mean nothing, but every candidate costs what it costs. The tokenizer is any tokenizer.json of at most
50,280 tokens: GPT-NeoX's, as the Pile models use, is tests/data/gpt-neox-20b.json.gz. Target: under 10 minutes on one
H200.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

import torch
from demo import calibrate
from shapes import write_state_spaces


def novel(path: Path, characters: int) -> None:
    """One long document: the bundled calibration text's paragraphs, drawn again and again."""
    source = Path(__file__).resolve().parents[1] / "calibrate" / "demo" / "calibration.txt"
    paragraphs, draw = source.read_text(encoding="utf-8").split("\n\n"), random.Random(0)
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < characters:
            written += file.write(draw.choice(paragraphs) + "\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--recipe", default="mamba-1.4b")
    parser.add_argument("--lengths", help="instead of the recipe's")
    parser.add_argument("--d-model", type=int, default=2048, help="a smaller model, to try the command itself")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path("build/calibrate-gpu"))
    args = parser.parse_args()
    model, text = args.out / "random-mamba", args.out / "novel.txt"
    write_state_spaces(model, args.d_model, args.layers, 50280)
    shutil.copyfile(args.tokenizer, model / "tokenizer.json")
    novel(text, 8_000_000)
    more = ["--lengths", args.lengths] if args.lengths else []
    document = calibrate(
        args.out, "run", "run", "--model", str(model), "--texts", str(text), "--recipe", args.recipe, "--device",
        args.device, "--out", str(args.out / "random.longscan.safetensors"), "--fresh", *more,
    )  # fmt: skip
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    print(
        f"{args.layers} layers, d_model {args.d_model}, {args.recipe}, {device}, torch {torch.__version__}: "
        f"{document['seconds'] / 60:.1f} minutes, {document['tokens']:,} tokens, cost {document['cost']:.1f}"
    )


if __name__ == "__main__":
    main()
