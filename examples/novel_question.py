"""Hide pass keys in a whole novel, read it in one go, and ask for them.

    python examples/novel_question.py [--sidecar FILE] [--depths 0.1,0.4,0.7,0.95] [--characters N]

The bundled model was trained at 256 bytes; Northanger Abbey has 433 thousand. Each row of a batch hides another key
at another depth. Without --sidecar, one is calibrated first at 96k, the longest length the demo's calibration text
holds (minutes; kept in build/demo). That text is this novel, with other keys; the weights have never seen it. The
keys are asked for twice, from the state in memory and from the same state saved and loaded: a book is read only once.
"""

from __future__ import annotations

import argparse
import random
import shlex
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import torch

from longscan.calibrate.texts.passkey import WORDINGS, draw_key, is_answered
from longscan.runtime import LM, load
from longscan.runtime.reading.state import State

WORDING = WORDINGS[0]
TEXTS = files("longscan.calibrate").joinpath("demo")
CALIBRATED = Path("build/demo/novel.longscan.safetensors")


def calibrate(out: Path) -> None:
    """Fit a filter at the longest length there is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--model", "demo", "--lengths", "96k", "--method", "filter", "--objective", "passkey"]
    arguments += ["--samples", "5", "--out", str(out)]
    print("$ calibrate run " + shlex.join(arguments), file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "longscan.calibrate", "run", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def hide(text: str, key: str, depth: float) -> str:
    """The text with the key's sentence at a share `depth` of its length."""
    at = round(depth * len(text))
    return text[:at] + WORDING.hide(key) + text[at:]


def ask(lm: LM, state: State) -> list[str]:
    """Every row's answer to the question; the state is left as it was."""
    pieces = lm.generate([WORDING.question] * state.batch, 7, state=state)
    return ["".join(row) for row in zip(*pieces)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sidecar", type=Path)
    parser.add_argument("--depths", default="0.1,0.4,0.7,0.95", help="where the keys hide, 0 ... 1")
    parser.add_argument("--characters", type=int, help="read only the first so many characters of the novel")
    args = parser.parse_args()
    if args.sidecar is None and not CALIBRATED.exists():
        calibrate(CALIBRATED)
    novel = TEXTS.joinpath("calibration.txt").read_text(encoding="utf-8")[: args.characters]
    rng = random.Random(0)
    keys = {float(depth): draw_key(rng, "evaluate") for depth in args.depths.split(",")}
    print(f"{len(novel.encode()):,} bytes of novel.{WORDING.question} ...")
    with tempfile.TemporaryDirectory() as folder:
        for name, lm in (("plain", load("demo")), ("calibrated", load("demo", args.sidecar or CALIBRATED))):
            prompts = [torch.tensor(lm.tokenizer.encode(hide(novel, key, at)).ids) for at, key in keys.items()]
            state = lm.prefill(prompts).state
            state.save(Path(folder) / "novel.safetensors")
            answers, again = ask(lm, state), ask(lm, lm.load_state(Path(folder) / "novel.safetensors"))
            for (depth, key), answer in zip(keys.items(), answers):
                verdict = "right" if is_answered(answer, key) else "wrong"
                print(f"{name:12}key {key} at {depth:4.0%}: {answer!r}, {verdict}")
            same = "the same" if answers == again else f"others: {again}"
            print(f"{name:12}from the saved state: {same}")


if __name__ == "__main__":
    main()
