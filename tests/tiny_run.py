"""A calibration small enough to be run many times: a random checkpoint, part of a novel, all parts of the search."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEMO_TEXT = ROOT / "calibrate" / "demo" / "calibration.txt"
BYTES = ROOT / "runtime" / "demo" / "tokenizer.json"
RECIPE = """\
samples: {samples}
length_factors: [2, 4]
objective: mixed
measure: {{windows: {windows}, kept: 8, batch_tokens: 256, sweep_windows: {sweeps}}}
filter:
  theta: [1.0e-2]
  theta_quantiles: [0.5]
  mass: {{law: [0.3, 0.8]}}
  layers: search
  g_fit: sequential
decimate: {{base_factors: [0.5], weights: [all, global]}}
"""
SCALE = "scale: {search: true, powers: [0.5, 1.0], top: [0.2]}\n"


def write(
    folder: Path, samples: int = 8, windows: int = 12, sweeps: int = 4, train_length: int = 64, more: str = SCALE
) -> list[str]:
    """A tokenizer, a text and a recipe beside the checkpoint in `folder`; arguments of `calibrate` but for --out and
    --workdir."""
    shutil.copyfile(BYTES, folder / "tokenizer.json")
    (folder / "novel.txt").write_text(DEMO_TEXT.read_text(encoding="utf-8")[:40000], encoding="utf-8")
    recipe = RECIPE.format(samples=samples, windows=windows, sweeps=sweeps) + more
    (folder / "tiny.yaml").write_text(recipe, encoding="utf-8")
    given = {"--model": folder, "--texts": folder / "novel.txt", "--recipe": folder / "tiny.yaml"}
    return ["run", *(str(part) for pair in given.items() for part in pair), "--train-length", str(train_length)]
